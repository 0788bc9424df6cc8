"""Rematerialisation: which values of a block the backward pass keeps, and which it computes again."""

from collections.abc import Callable
from typing import Any, get_args

import jax

from jaxformer.config import Compute, Config, Saved
from jaxformer.sites import available_sites


def rematerialised(
    step: Callable[..., Any], config: Config, compute: Compute, *, listed: bool = False
) -> Callable[..., Any]:
    """Return a block's step whose backward pass recomputes what compute.remat says.

    If the layers are not in a loop (they are a list, or one iteration runs them all), the forward pass's values are in
    the same computation as the recomputed ones, and XLA would keep the former instead of recomputing. A barrier
    prevents that (prevent_cse=True), but jax 0.10's compiler for CPUs ignores it.

    Raises:
        ValueError: compute.saved names a site that this Config does not have.
    """
    check_saved(config, compute)
    unrolled = listed or 2 * compute.unroll > config.n_layers
    return jax.checkpoint(step, prevent_cse=unrolled, policy=POLICIES[compute.remat](compute))


POLICIES: dict[str, Callable[[Compute], Callable[..., Any]]] = {
    "block": lambda compute: jax.checkpoint_policies.nothing_saveable,
    "dots": lambda compute: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "sites": lambda compute: jax.checkpoint_policies.save_only_these_names(*compute.saved),
}
"""By Compute.remat: which values of a block `jax.checkpoint` keeps."""


def check_saved(config: Config, compute: Compute) -> None:
    """Refuse compute.saved if it names a site that this Config does not have.

    Raises:
        ValueError: naming the first.
    """
    available = available_sites(config, compute)
    for site in compute.saved:
        if site not in available:
            raise ValueError(
                f"saved={compute.saved!r} holds {site!r}, a site that this Config does not have; "
                f"choose from {', '.join(site for site in available if site in get_args(Saved))}"
            )
