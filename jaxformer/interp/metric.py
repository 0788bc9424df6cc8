"""What an intervention is judged by: one number of a run's logits; and the two runs that it compares."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.params import Params
from jaxformer.sites import Edit, keep
from jaxformer.transformer import forward

Metric = Callable[[Any], Any]
"""From the logits of the places read, `r v`, or `b r v` of a batch, to one number."""


def measure(
    params: Params,
    config: Config,
    tokens: Int[Array, "*b t"],
    metric: Metric,
    *,
    edit: Edit = keep,
    read: Any = None,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, ""]:
    """A metric of one pass: what the numbers of a sweep are held against.

    Raises:
        ValueError: a metric that is no scalar, and all that `forward` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> measure(params, config, jnp.array([3, 1]), lambda logits: logits[-1, 4]).shape
    ()
    """
    tokens = jnp.asarray(tokens)

    def one(tokens: Array) -> Array:
        return forward(params, config, tokens, edit=edit, read=read, compute=compute).logits

    return scalar(metric, one(tokens) if tokens.ndim == 1 else jax.vmap(one)(tokens))


def scalar(metric: Metric, logits: Float[Array, "..."]) -> Float[Array, ""]:
    """The metric, held to being one number.

    Raises:
        ValueError: it is not.
    """
    value = metric(logits)
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"the metric gives shape {shape} and dtype {dtype} for logits of shape {logits.shape}; "
            "it must give one floating number, say logits[-1, a] - logits[-1, b]"
        )
    return jnp.asarray(value)


def check_alike(clean: Any, corrupted: Any) -> None:
    """Refuse two runs that no patch can join.

    Raises:
        ValueError: tokens of different shapes.
    """
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"clean has shape {clean.shape}, corrupted {corrupted.shape}; a patch needs two runs of one "
            "shape: choose texts of as many tokens"
        )
