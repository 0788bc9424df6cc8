"""Checks of what `forward` is given, and the conversion to the dtype of the computation."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path
from jaxtyping import Array, Integer

from jaxformer.checks import (
    as_array,
    check_length,
    check_logits_at,
    check_segments,
    check_vocabulary,
)
from jaxformer.config import Compute, Config
from jaxformer.edits import check_capture, check_edit
from jaxformer.model.cache import Cache, capacity, check_cache
from jaxformer.model.params import Block, Params, specs
from jaxformer.model.spec import Spec, is_spec, path_name
from jaxformer.sites import Edit, identity

Integers = Integer[Array | np.ndarray, " t"] | Sequence[int]  # one sequence, such as token ids


class Inputs(NamedTuple):
    """The arrays that `forward` reads besides the parameters."""

    tokens: Any
    cache: Cache | None
    logits_at: Any
    segments: Any


def check_inputs(
    params: Params, config: Config, inputs: Inputs, capture: Any, edit: Edit, compute: Compute, unread: int = 0
) -> tuple[Inputs, tuple[str, ...]]:  # fmt: skip
    """Check what has to be checked at every call: concrete values. Return the arrays, and the names in `capture`.

    The last `unread` tokens are only targets.
    """
    check_order(params, config, compute)
    inputs = inputs._replace(tokens=check_tokens(inputs.tokens, config, inputs.segments, unread))
    if inputs.logits_at is not None or inputs.segments is not None:
        inputs = check_options(inputs, config, unread)
    if edit is not identity:
        t, cache, at = len(inputs.tokens) - unread, inputs.cache, inputs.logits_at
        lengths = {"t": t, "s": t if cache is None else capacity(cache), "r": t if at is None else len(at)}  # fmt: skip
        check_edit(edit, config, compute, lengths)
    return inputs, check_capture(capture, config, compute) if type(capture) is not tuple or capture else ()  # fmt: skip


def check_shapes(
    params: Params, config: Config, inputs: Inputs, compute: Compute
) -> tuple[Params, Inputs]:
    """Check the shapes of parameters and cache; convert the parameters to the dtype of the computation."""
    check_params(params, config)
    if inputs.cache is not None:
        check_cache(inputs.cache, config, len(inputs.tokens), listed=isinstance(params.blocks, list))  # fmt: skip
    return jax.tree.map(lambda a: jnp.asarray(a).astype(compute.dtype or params.W_E.dtype), params), inputs  # fmt: skip


def check_order(params: Any, config: Any, compute: Any = Compute()) -> None:
    """Refuse arguments of other types, such as swapped ones."""
    if not (isinstance(params, Params) and isinstance(config, Config) and isinstance(compute, Compute)):  # fmt: skip
        given = {"params": params, "config": config, "compute": compute}
        kinds = ", ".join(f"{name} is a {type(value).__name__}" for name, value in given.items())
        raise ValueError(f"{kinds}; give Params and a Config, in the order params, config")


def check_tokens(tokens: Any, config: Config, segments: Any, unread: int) -> Any:
    """Check that the tokens are one sequence of ids that fits into the position table; return it as an array."""
    tokens = tokens if isinstance(tokens, jax.Array) else as_array("tokens", tokens)
    if tokens.ndim != 1 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens have shape {tokens.shape} and dtype {tokens.dtype}; forward takes one sequence of integers. "
            "For a batch: jax.vmap(forward, in_axes=(None, None, 0))"
        )
    if config.position == "learned" and segments is None:
        check_length("tokens", len(tokens) - unread, config.n_context)
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(np.asarray(tokens), config.n_vocab)
    return tokens


def check_options(inputs: Inputs, config: Config, unread: int) -> Inputs:
    """Check logits_at and segments; return them as arrays."""
    at, segments, length = inputs.logits_at, inputs.segments, len(inputs.tokens)
    if segments is not None:
        if inputs.cache is not None:
            raise ValueError("segments do not go with a cache; give each document its own cache")
        segments = check_segments(segments, length, config.max_length, unread)
    at = None if at is None else check_logits_at(at, length)
    return inputs._replace(logits_at=at, segments=segments)


def check_params(params: Params, config: Config) -> None:
    """Refuse parameters of another Config: name the first array that is missing, superfluous or of another shape."""
    check_order(params, config)
    given, needed = tree_leaves_with_path(params), _shapes(config, isinstance(params.blocks, list))
    if (shapes := {path: jnp.shape(array) for path, array in given}) != needed:
        path = next(path for path in needed | shapes if shapes.get(path) != needed.get(path))
        raise ValueError(
            f"this Config has {path_name(path)} of shape {needed.get(path)}, the parameters have {shapes.get(path)}; "
            "both must come from one model"
        )
    if wrong := [leaf for leaf in given if not jnp.issubdtype(leaf[1].dtype, jnp.floating)]:
        raise ValueError(f"{path_name(wrong[0][0])} is {wrong[0][1].dtype}; parameters are floats")


@lru_cache
def _shapes(config: Config, listed: bool) -> dict[Any, tuple[int, ...]]:
    """Return the shape of every parameter, by its path; the blocks are stacked, or `listed`."""
    tree: Any = specs(config)
    if listed and config.n_layers:
        one = jax.tree.map(lambda s: s._replace(shape=s.shape[1:]), tree.blocks, is_leaf=is_spec)
        tree = tree._replace(blocks=[one] * config.n_layers)
    leaves = tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, Spec))
    return {path: spec.shape for path, spec in leaves}


def stacked(params: Params, config: Config) -> Block:
    """Return the blocks of parameters that belong to this Config, stacked over layers."""
    check_params(params, config)
    if isinstance(params.blocks, list):
        raise ValueError("the blocks are a list; give them stacked, as init returns them")
    return params.blocks
