"""Checks of what `forward` is given, and the conversion to the dtype of the computation."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path
from jaxtyping import Array, Int

from jaxformer.checks import check_vocabulary
from jaxformer.config import Compute, Config
from jaxformer.edits import check_capture, check_edit
from jaxformer.model.cache import Cache, capacity, check_cache
from jaxformer.model.params import Block, Params, specs
from jaxformer.model.spec import Spec, is_spec, path_name
from jaxformer.sites import Edit, identity

Integers = Int[Array | np.ndarray, " t"] | Sequence[int]  # one sequence, such as token ids


class Inputs(NamedTuple):
    """The arrays that `forward` reads besides the parameters."""

    tokens: Any
    cache: Cache | None
    logits_at: Any
    segments: Any


def check_inputs(
    params: Params, config: Config, inputs: Inputs, capture: Any, edit: Edit, compute: Compute
) -> tuple[Inputs, tuple[str, ...]]:  # fmt: skip
    """Check what has to be checked at every call: concrete values. Return the arrays, and the names in `capture`."""
    check_order(params, config)
    inputs = inputs._replace(tokens=check_tokens(inputs.tokens, config, inputs.segments))
    if inputs.logits_at is not None or inputs.segments is not None:
        inputs = check_options(inputs, config)
    if edit is not identity:
        t, rows, r = len(inputs.tokens), inputs.cache, inputs.logits_at
        lengths = {"t": t, "s": t if rows is None else capacity(rows), "r": t if r is None else len(r)}  # fmt: skip
        check_edit(edit, config, compute, lengths)
    return inputs, check_capture(capture, config, compute) if capture else ()


def check_shapes(params: Params, config: Config, inputs: Inputs, compute: Compute) -> Params:
    """Check the shapes of parameters and cache; return the parameters in the dtype of the computation."""
    check_params(params, config)
    if inputs.cache is not None:
        check_cache(inputs.cache, config, len(inputs.tokens), listed=isinstance(params.blocks, list))  # fmt: skip
    return jax.tree.map(lambda array: jnp.asarray(array).astype(compute.dtype or params.W_E.dtype), params)  # fmt: skip


def check_order(params: Any, config: Any) -> None:
    """Refuse swapped arguments."""
    if not isinstance(config, Config) or not isinstance(params, Params):
        given = f"params is a {type(params).__name__}, config is a {type(config).__name__}"
        raise ValueError(f"{given}; the order is params, config")


def check_tokens(tokens: Any, config: Config, segments: Any = None) -> Any:
    """Check that the tokens are one sequence of ids that fits into the position table; return it as an array."""
    tokens = tokens if isinstance(tokens, jax.Array) else np.asarray(tokens)
    if tokens.ndim != 1 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens have shape {tokens.shape} and dtype {tokens.dtype}; forward takes one sequence of integers. "
            "For a batch: jax.vmap(forward, in_axes=(None, None, 0))"
        )
    if config.position == "learned" and segments is None:
        _check_length("tokens", len(tokens), config)
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(np.asarray(tokens), config.n_vocab)
    return tokens


def check_options(inputs: Inputs, config: Config) -> Inputs:
    """Check logits_at and segments; return them as arrays."""
    at, segments, length = inputs.logits_at, inputs.segments, len(inputs.tokens)
    if segments is not None:
        segments = _integers("segments", segments)
        if inputs.cache is not None:
            raise ValueError("segments do not go with a cache; give each document its own cache")
        if len(segments) != length:
            raise ValueError(f"{len(segments)} segments do not fit {length} tokens")
        if not isinstance(segments, jax.core.Tracer):
            starts = np.flatnonzero(np.diff(segments, prepend=np.nan, append=np.nan))
            _check_length("tokens of a document", int(np.diff(starts).max(initial=0)), config)
    at = None if at is None else check_logits_at(at, length)
    return inputs._replace(logits_at=at, segments=segments)


def check_logits_at(logits_at: Any, length: int) -> Any:
    """Return positions within the sequence as an array."""
    at = _integers("logits_at", logits_at)
    concrete = [] if isinstance(at, jax.core.Tracer) else np.asarray(at).tolist()
    if outside := [position for position in concrete if not -length <= position < length]:
        raise ValueError(f"logits_at holds {outside[0]}, but there are {length} tokens")
    return at


def _integers(name: str, values: Any) -> Any:
    array = values if isinstance(values, jax.Array) else np.asarray(values)
    if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name}: {array.dtype} of shape {array.shape}; give one axis of integers")
    return array


def _check_length(what: str, length: int, config: Config) -> None:
    if config.max_length is not None and length > config.max_length:
        raise ValueError(
            f"{length} {what} are too many: the position table holds n_context={config.max_length}"
        )


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
