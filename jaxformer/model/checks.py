"""Checks of what `forward` is given, and the conversion to the dtype of the computation."""

from functools import lru_cache
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxformer.checks import check_vocabulary
from jaxformer.config import Compute, Config
from jaxformer.model.cache import Cache, check_cache
from jaxformer.model.params import Block, Params, specs
from jaxformer.model.sites import Edit
from jaxformer.model.spec import Spec, path_name
from jaxformer.model.tap import check_capture, check_edit


def check_inputs(
    params: Params, config: Config, tokens: Any, cache: Cache | None,
    capture: Any, edit: Edit, logits_at: Any, compute: Compute,
) -> tuple[Params, Array, tuple[str, ...], Array | None]:  # fmt: skip
    """Check the arguments of `forward`, and convert the parameters to the dtype of the computation."""
    if capture := capture if isinstance(capture, str) else tuple(capture):
        check_capture(capture, config, compute)
    check_edit(edit, config, compute)
    check_params(params, config)
    tokens = check_tokens(tokens, config)
    if cache is not None:
        check_cache(cache, config, len(tokens), listed=isinstance(params.blocks, list))
    if logits_at is not None:
        logits_at = check_logits_at(logits_at, len(tokens))
    dtype = jnp.dtype(compute.dtype or params.W_E.dtype)
    params = jax.tree.map(lambda array: jnp.asarray(array).astype(dtype), params)
    return params, tokens, capture, logits_at


def check_tokens(tokens: Any, config: Config) -> Int[Array, " t"]:
    """Check that the tokens are one sequence of ids that fits into the position table; return it as an array."""
    tokens = (
        tokens if isinstance(tokens, jax.Array) else np.asarray(tokens)
    )  # JAX would wrap wide integers
    if tokens.ndim != 1 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens have shape {tokens.shape} and dtype {tokens.dtype}; forward takes one sequence of integers. "
            "For a batch: jax.vmap(forward, in_axes=(None, None, 0))"
        )
    if config.position == "learned" and len(tokens) > (config.n_context or 0):
        raise ValueError(
            f"{len(tokens)} tokens are too many: the position table holds n_context={config.n_context}"
        )
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(np.asarray(tokens), config.n_vocab)
    return jnp.asarray(tokens)


def check_logits_at(logits_at: Any, length: int) -> Int[Array, " r"]:
    """Return positions within the sequence as an array."""
    at = logits_at if isinstance(logits_at, jax.Array) else np.asarray(logits_at)
    if at.ndim != 1 or not jnp.issubdtype(at.dtype, jnp.integer):
        raise ValueError(
            f"logits_at has shape {at.shape} and dtype {at.dtype}; give one axis of integers"
        )
    concrete = [] if isinstance(at, jax.core.Tracer) else np.asarray(at).tolist()
    if outside := [position for position in concrete if not -length <= position < length]:
        raise ValueError(f"logits_at holds {outside[0]}, but there are {length} tokens")
    return jnp.asarray(at)


def check_params(params: Params, config: Config) -> None:
    """Refuse parameters of another Config: name the first array that is missing, superfluous or of another shape."""
    needed = _shapes(config, listed=isinstance(params.blocks, list))
    given = dict(jax.tree_util.tree_leaves_with_path(params))
    for path in needed | given:
        shape = jnp.shape(given[path]) if path in given else None
        if shape != needed.get(path):
            raise ValueError(
                f"this Config has {path_name(path)} of shape {needed.get(path)}, the parameters have {shape}; "
                "both must come from one model"
            )
        if not jnp.issubdtype(given[path].dtype, jnp.floating):
            raise ValueError(f"{path_name(path)} is {given[path].dtype}; parameters are floats")


@lru_cache
def _shapes(config: Config, *, listed: bool) -> dict[Any, tuple[int, ...]]:
    """Return the shape of every parameter, by its path; the blocks are stacked, or `listed`."""
    tree: Any = specs(config)
    leaf: Any = {"is_leaf": lambda node: isinstance(node, Spec)}
    if listed and config.n_layers:
        one = jax.tree.map(lambda spec: spec._replace(shape=spec.shape[1:]), tree.blocks, **leaf)
        tree = tree._replace(blocks=[one] * config.n_layers)
    return {path: spec.shape for path, spec in jax.tree_util.tree_leaves_with_path(tree, **leaf)}


def stacked(params: Params, config: Config) -> Block:
    """Return the blocks of parameters that belong to this Config, stacked over layers."""
    check_params(params, config)
    if isinstance(params.blocks, list):
        raise ValueError("the blocks are a list; give them stacked, as init returns them")
    return params.blocks
