"""Metrics: functions from logits to one number, which measure the effect of an intervention. Also checks of tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from jaxformer.checks import check_vocabulary
from jaxformer.config import Compute, Config
from jaxformer.edits import NUMBERS
from jaxformer.model.checks import check_params
from jaxformer.model.params import Params
from jaxformer.model.transformer import forward
from jaxformer.sites import Edit, identity

Metric = Callable[[Any], Any]
"""Maps the logits at logits_at, `r v`, or `b r v` for a batch, to one number."""


class SplitMetric(NamedTuple):
    """A metric's function, which is static under jit, and its arguments, which are traced."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def split(metric: Any) -> SplitMetric:
    """Split a metric into its function and, for a `jax.tree_util.Partial`, its arguments.

    Raises:
        ValueError: a metric that is not callable or not hashable; arguments that are not arrays.

    >>> split(jax.tree_util.Partial(max, 3)).arguments
    (3,)
    """
    parts = SplitMetric(metric, (), {})
    if isinstance(metric, Partial):
        parts = SplitMetric(metric.func, metric.args, metric.keywords)
    if not callable(parts.function):
        raise ValueError(f"metric={metric!r} is not a function; give one from logits to a number")
    try:
        hash(parts.function)
    except TypeError:
        raise ValueError(
            f"metric={metric!r} is not hashable; give a function, or a jax.tree_util.Partial of one and arrays"
        ) from None
    for argument in jax.tree.leaves(parts[1:]):
        if not isinstance(argument, NUMBERS):
            raise ValueError(
                f"metric is a jax.tree_util.Partial with {argument!r}, which is not an array; "
                "bind other arguments with functools.partial"
            )
    return parts


def measure(
    params: Params,
    config: Config,
    tokens: Int[Array, "*b t"],
    metric: Metric,
    *,
    edit: Edit = identity,
    logits_at: Any = None,
    compute: Compute = Compute(),
) -> Float[Array, ""]:
    """Return the metric of one forward pass, to compare with the numbers of a sweep.

    Args:
        tokens: one sequence, or a batch; the metric gets the logits of all its sequences.
        metric: as in `patch_sweep`; not compiled here.
        edit: as in `forward`.
        logits_at: the positions whose logits the metric gets.

    Raises:
        ValueError: a metric that is not a scalar, tokens that are not [t] or [b t], and as `forward`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> measure(params, config, jnp.array([3, 1]), lambda logits: logits[-1, 4]).shape
    ()
    """
    check_params(params, config)
    tokens = as_tokens("tokens", tokens, config)

    def run(tokens: Array) -> Array:
        return forward(
            params, config, tokens, edit=edit, logits_at=logits_at, compute=compute
        ).logits

    return scalar(metric, run(tokens) if tokens.ndim == 1 else jax.vmap(run)(tokens))


def scalar(metric: Metric, logits: Float[Array, "..."]) -> Float[Array, ""]:
    """Return the metric of some logits, and check that it is one number.

    Raises:
        ValueError: it is not one floating-point number.
    """
    value = metric(logits)
    if not isinstance(value, NUMBERS):
        raise ValueError(
            f"the metric returns a {type(value).__name__}; it must return one floating-point number"
        )
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"the metric returns shape {shape} and dtype {dtype} for logits of shape {logits.shape}; "
            "it must return one floating-point number, such as logits[-1, a] - logits[-1, b]"
        )
    return jnp.asarray(value)


def as_tokens(name: str, tokens: Any, config: Config) -> Int[Array, "*b t"]:
    """Return token ids, of one sequence or a batch, as an array.

    Raises:
        ValueError: other axes, a dtype that is not an integer, no tokens, or a token outside the vocabulary.
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
    """Refuse two runs whose tokens have different shapes.

    Raises:
        ValueError: naming the two shapes.
    """
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"clean has shape {clean.shape}, corrupted {corrupted.shape}; a patch needs equal shapes: "
            "choose texts with the same number of tokens"
        )
