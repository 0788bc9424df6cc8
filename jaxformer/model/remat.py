"""Rematerialisation: what of a block the backward pass keeps, and what it computes again."""

from collections.abc import Callable
from typing import Any, get_args

import jax

from jaxformer.config import Compute, Config, Saved
from jaxformer.model.sites import shown


def rematerialised(
    step: Callable[..., Any], config: Config, compute: Compute, *, listed: bool = False
) -> Callable[..., Any]:
    """A block's step, of which the backward pass recomputes what compute.remat says.

    Where layers are in no loop (a list of them, or one turn that is all), the forward pass's values are in the
    same computation as the recomputed ones, and XLA would keep the former in the place of the latter: there a
    barrier forbids it (of which jax 0.10's compiler for CPUs takes no notice).
    """
    policy = POLICIES[compute.remat](compute)
    if policy is None:
        return step
    apart = listed or 2 * compute.unroll > config.n_layers
    return jax.checkpoint(step, prevent_cse=apart, policy=policy)


POLICIES: dict[str, Callable[[Compute], Callable[..., Any] | None]] = {
    "none": lambda compute: None,
    "block": lambda compute: jax.checkpoint_policies.nothing_saveable,
    "dots": lambda compute: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "sites": lambda compute: jax.checkpoint_policies.save_only_these_names(*compute.saved),
}
"""By remat: what of a block `jax.checkpoint` keeps; None: all, without it."""


def check_saved(config: Config, compute: Compute) -> None:
    """Refuse sites for the backward pass to keep that this Config does not have.

    Raises:
        ValueError: naming the first.
    """
    seen = shown(config, compute)
    for site in compute.saved:
        if site not in seen:
            raise ValueError(
                f"saved={compute.saved!r} holds {site!r}, a site that this Config does not have; "
                f"choose from {', '.join(site for site in seen if site in get_args(Saved))}"
            )
