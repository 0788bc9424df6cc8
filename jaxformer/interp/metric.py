"""What an intervention is judged by: one number of a run's logits; and the two runs that it compares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from jaxformer.checks import check_vocabulary
from jaxformer.config import Compute, Config
from jaxformer.model.params import Params
from jaxformer.model.sites import Edit, keep
from jaxformer.model.transformer import forward

Metric = Callable[[Any], Any]
"""From the logits of the places read, `r v`, or `b r v` of a batch, to one number."""


NUMBERS = (jax.Array, np.ndarray, np.generic, int, float)


class Fixed(NamedTuple):
    """A metric as a compiled program knows it: what it was compiled for, and what each call may give anew."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def split(metric: Any) -> Fixed:
    """A metric's function, and of a `jax.tree_util.Partial` its arguments.

    Raises:
        ValueError: what cannot be called, or cannot be told from others by its hash; arguments that are no arrays.

    >>> split(jax.tree_util.Partial(max, 3)).arguments
    (3,)
    """
    taken = isinstance(metric, Partial)
    fixed = Fixed(metric.func, metric.args, metric.keywords) if taken else Fixed(metric, (), {})
    if not callable(fixed.function):
        raise ValueError(f"metric={metric!r} is no function; give one from logits to a number")
    try:
        hash(fixed.function)
    except TypeError:
        raise ValueError(
            f"metric={metric!r} has no hash; give a function, or a jax.tree_util.Partial of one and arrays"
        ) from None
    for argument in jax.tree.leaves(fixed[1:]):
        if not isinstance(argument, NUMBERS):
            raise ValueError(
                f"metric is a jax.tree_util.Partial with {argument!r}, and its arguments are arrays; "
                "bind what is none by functools.partial"
            )
    return fixed


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

    Args:
        tokens: one sequence, or a batch whose logits the metric gets together.
        metric: as in `patch_sweep`; not compiled here, unless the caller does.
        edit: as in `forward`.
        read: the places whose logits the metric gets.

    Raises:
        ValueError: a metric that is no scalar, tokens [t] or [b t] that are none, and all that `forward` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> measure(params, config, jnp.array([3, 1]), lambda logits: logits[-1, 4]).shape
    ()
    """
    tokens = as_tokens("tokens", tokens, config)

    def one(tokens: Array) -> Array:
        return forward(params, config, tokens, edit=edit, read=read, compute=compute).logits

    return scalar(metric, one(tokens) if tokens.ndim == 1 else jax.vmap(one)(tokens))


def scalar(metric: Metric, logits: Float[Array, "..."]) -> Float[Array, ""]:
    """The metric, held to being one number.

    Raises:
        ValueError: it is not.
    """
    value = metric(logits)
    if not isinstance(value, NUMBERS):
        raise ValueError(
            f"the metric gives a {type(value).__name__}; it must give one floating number"
        )
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"the metric gives shape {shape} and dtype {dtype} for logits of shape {logits.shape}; "
            "it must give one floating number, say logits[-1, a] - logits[-1, b]"
        )
    return jnp.asarray(value)


def as_tokens(name: str, tokens: Any, config: Config) -> Int[Array, "*b t"]:
    """Token ids as an array, one sequence or a batch.

    Raises:
        ValueError: other axes, no integers, none at all, or one outside the vocabulary.
    """
    tokens = jnp.asarray(tokens)
    if tokens.ndim not in (1, 2) or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"{name} has shape {tokens.shape} and dtype {tokens.dtype}; give token ids [t] or [b t]"
        )
    if not tokens.size:
        raise ValueError(f"{name} holds no tokens; give at least one")
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(tokens, config.n_vocab)
    return tokens


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
