"""Prefill: read a batch of prompts, and later further tokens of each, into one cache. Everything here is traced."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.decoding.inputs import bucket
from jaxformer.decoding.request import EditFrom, Program
from jaxformer.decoding.stacking import unstack
from jaxformer.edits import check_edit, fits
from jaxformer.model.cache import Cache, batch_axis, empty_cache
from jaxformer.model.checks import Inputs
from jaxformer.model.params import Params
from jaxformer.model.transformer import run_model
from jaxformer.sites import LOGIT_SITES, Edit, EditFunction, Layer, activation_axis, position_axis


class Read(NamedTuple):
    """The result of reading tokens: logits and activations of one position of each sequence, and the cache."""

    logits: Float[Array, "b v"]
    activations: dict[str, Array]
    cache: Cache


def read_prompts(
    params: Params,
    program: Program,
    editing: EditFrom,
    prompts: Int[Array, "b t"],
    lengths: Int[Array, "..."],
    *,
    room: int,
) -> Read:
    """Read the prompts into a new cache that also has room for `room` further tokens."""
    batch, width = prompts.shape
    rows, piece = cache_size(program.config, width, room)
    one = empty_cache(
        program.config, rows, program.compute.cache or program.compute.dtype or params.W_E.dtype
    )
    k, v = jax.tree.map(
        lambda a: jnp.zeros((a.shape[0], batch, *a.shape[1:]), a.dtype), (one.k, one.v)
    )
    cache = Cache(k, v, jnp.zeros_like(lengths))
    cache = unstack(cache) if isinstance(params.blocks, list) else cache
    if piece == width:
        read = read_on(params, program, editing, prompts, cache, lengths - 1)
    else:
        read = _read_in_pieces(params, program, editing, prompts, cache, lengths, piece)
    # The padding is not a part of the prompt: later tokens overwrite its rows.
    return read._replace(cache=read.cache._replace(length=lengths))


def read_on(
    params: Params,
    program: Program,
    editing: EditFrom,
    tokens: Int[Array, "b t"],
    cache: Cache,
    last: Int[Array, "..."],
) -> Read:
    """Read further tokens of each sequence; return logits and activations of the token at index `last`."""

    def one(tokens: Array, cache: Cache, last: Array, start: Array | None) -> tuple[Any, ...]:
        edit = editing.edit
        if start is not None or len(tokens) > 1:
            positions = cache.length + jnp.arange(len(tokens), dtype=jnp.int32)
            first = jnp.int32(0) if start is None else start
            edit = edit_from_position(edit, first, positions, last)
        inputs = Inputs(tokens, cache, last[None], None)
        out = run_model(
            edit, params, program.config, inputs, program.compute, capture=program.capture
        )
        return out.logits[0], _at(out.activations, last), out.cache

    layers, own = batch_axis(cache), lambda array: 0 if jnp.ndim(array) else None
    axes: Any = Cache(layers, layers, own(cache.length))  # pyright: ignore[reportArgumentType]
    start = editing.start
    in_axes = (0, axes, own(last), None if start is None else own(start))
    return Read(*jax.vmap(one, in_axes, (0, 0, axes))(tokens, cache, last, start))


def edit_from_position(
    edit: EditFunction, start: Int[Array, ""], positions: Int[Array, " t"], last: Int[Array, ""]
) -> EditFunction:
    """Restrict the edit to the positions from `start` to the one at index `last`; padding comes after it.

    No position attends to the padding, but NaN in it would spread: a weight of 0 times NaN is NaN.
    """

    def restricted(site: str, layer: Layer, value: Array) -> Any:
        changed: Any = edit(site, layer, value)
        if changed is value or not fits(changed, value):
            return changed
        here = positions[last][None] if site in LOGIT_SITES else positions
        acts = (here >= start) & (here <= positions[last])
        shape = [1] * value.ndim
        shape[position_axis(site)] = -1
        return jnp.where(acts.reshape(shape), jnp.asarray(changed, value.dtype), value)

    return restricted


def check_edit_of_passes(edit: Edit, program: Program, width: int, room: int) -> None:
    """Refuse an edit that some pass of a generation cannot make: every token after the prompt is at position 0.

    Raises:
        ValueError: as `forward`.
    """
    rows, _ = cache_size(program.config, width, room)
    check_edit(edit, program.config, program.compute, {"t": 1, "s": rows, "r": 1})


def cache_size(config: Config, width: int, room: int) -> tuple[int, int]:
    """Return the number of cache rows, and how many tokens of the prompts are read at a time.

    If every layer has a window, the cache is rolling, and long prompts are read in pieces.
    """
    rows = width + room
    if config.max_length is not None:
        rows = max(min(rows, config.max_length), width)
    if config.max_lookback is None:
        return rows, width
    piece = min(width, bucket(config.max_lookback))
    piece = piece if width % piece == 0 else width
    return min(rows, config.max_lookback + piece - 1), piece


def cast_params(params: Params, compute: Compute) -> Params:
    """Cast the parameters to the compute dtype, once: inside the loop, every token would cast them."""
    dtype = compute.dtype
    return params if dtype is None else jax.tree.map(lambda array: array.astype(dtype), params)


def _read_in_pieces(
    params: Params,
    program: Program,
    editing: EditFrom,
    prompts: Int[Array, "b t"],
    cache: Cache,
    lengths: Int[Array, "..."],
    piece: int,
) -> Read:
    """Read the prompts `piece` tokens at a time into a rolling cache, which holds a window and a piece."""

    def step(read: Read, start: Array) -> tuple[Read, None]:
        tokens = jax.lax.dynamic_slice_in_dim(prompts, start, piece, axis=1)
        cache = read.cache._replace(length=jnp.zeros_like(lengths) + start)
        last = jnp.clip(lengths - 1 - start, 0, piece - 1)
        new = read_on(params, program, editing, tokens, cache, last)
        unfinished = start < lengths  # a prompt that has ended keeps its results and its cache

        def newer(axis: int, new: Array, old: Array) -> Array:
            shape = [1] * new.ndim
            shape[axis] = -1
            return jnp.where(unfinished.reshape(shape) if unfinished.ndim else unfinished, new, old)

        logits, activations = jax.tree.map(partial(newer, 0), new[:2], read[:2])
        k, v = jax.tree.map(partial(newer, batch_axis(cache)), new.cache[:2], read.cache[:2])
        return Read(logits, activations, Cache(k, v, lengths)), None

    shapes = jax.eval_shape(
        lambda: read_on(params, program, editing, prompts[:, :piece], cache, lengths * 0)
    )
    read = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    starts = jnp.arange(0, prompts.shape[1], piece, dtype=jnp.int32)
    return jax.lax.scan(step, read._replace(cache=cache._replace(length=lengths)), starts)[0]


def _at(activations: dict[str, Array], index: Int[Array, ""]) -> dict[str, Array]:
    """Return the activations of one position, without their axis t."""
    return {
        site: jax.lax.dynamic_index_in_dim(
            value, 0 if site in LOGIT_SITES else index, activation_axis(site), keepdims=False
        )
        for site, value in activations.items()
    }
