"""Reading for generation: a batch of prompts, then further tokens of each, into one cache. All of it is traced."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.decoding.inputs import bucket
from jaxformer.model.cache import Cache, batch_axis, empty_cache
from jaxformer.model.params import Params, unstack
from jaxformer.model.sites import READ, Edit, Layer, Site, activation_axis, position_axis
from jaxformer.model.transformer import forward


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
    """What a program is compiled for."""

    config: Config
    edit: Edit
    capture: tuple[str, ...]
    compute: Compute


class Read(NamedTuple):
    """What reading on gave: the logits behind one position of each sequence, and its activations."""

    logits: Float[Array, "b v"]
    activations: dict[str, Array]
    cache: Cache


def read_prompts(
    params: Params,
    how: How,
    since: Int[Array, "..."] | None,
    prompts: Int[Array, "b t"],
    lengths: Int[Array, "..."],
    *,
    room: int,
) -> Read:
    """Read the prompts into a fresh cache with room for so many tokens more; `since`: the first position to edit."""
    batch, width = prompts.shape
    rows, piece = plan(how.config, width, room)
    one = empty_cache(how.config, rows, how.compute.cache or how.compute.dtype or params.W_E.dtype)
    many = jax.tree.map(
        lambda a: jnp.zeros((a.shape[0], batch, *a.shape[1:]), a.dtype), (one.k, one.v)
    )
    cache = Cache(many[0], many[1], jnp.zeros_like(lengths))
    cache = unstack(cache) if isinstance(params.blocks, list) else cache
    if piece == width:
        read = read_on(params, how, since, prompts, cache, lengths - 1)
    else:
        read = _read_in_pieces(params, how, since, prompts, cache, lengths, piece)
    # What fills a prompt up is no part of it: the next token takes its row.
    return read._replace(cache=read.cache._replace(length=lengths))


def read_on(
    params: Params,
    how: How,
    since: Int[Array, "..."] | None,
    tokens: Int[Array, "b t"],
    cache: Cache,
    last: Int[Array, "..."],
) -> Read:
    """Read more tokens of each sequence, with an eye on the one at index `last`."""

    def one(tokens: Array, cache: Cache, last: Array, since: Array | None) -> tuple[Any, ...]:
        edit = how.edit
        if since is not None or len(tokens) > 1:
            positions = cache.length + jnp.arange(len(tokens), dtype=jnp.int32)
            edit = begun(edit, jnp.int32(0) if since is None else since, positions, last)
        out = forward(
            params, how.config, tokens, cache,
            capture=how.capture, edit=edit, read=last[None], compute=how.compute,
        )  # fmt: skip
        return out.logits[0], _at(out.activations, last), out.cache

    layered, own = batch_axis(cache), lambda array: 0 if jnp.ndim(array) else None
    axes: Any = Cache(layered, layered, own(cache.length))  # pyright: ignore[reportArgumentType]
    in_axes = (0, axes, own(last), None if since is None else own(since))
    return Read(*jax.vmap(one, in_axes, (0, 0, axes))(tokens, cache, last, since))


def begun(
    edit: Edit, since: Int[Array, ""], positions: Int[Array, " t"], last: Int[Array, ""]
) -> Edit:
    """The edit, from a position on; earlier ones keep their values, and so does what fills a prompt up.

    Nothing reads the filling, but NaN in it would spread: a weight of 0 times NaN is NaN.
    """

    def gated(site: Site, layer: Layer, value: Array) -> Any:
        changed: Any = edit(site, layer, value)
        if changed is value or jnp.shape(changed) != value.shape or jnp.iscomplexobj(changed):
            return changed  # nothing to hold back, or something for the Tap to refuse
        here = positions[last][None] if site in READ else positions
        acts = (here >= since) & (here <= positions[last])
        shape = [1] * value.ndim
        shape[position_axis(site)] = -1
        return jnp.where(acts.reshape(shape), jnp.asarray(changed, value.dtype), value)

    return gated


def plan(config: Config, width: int, room: int) -> tuple[int, int]:
    """The rows of the cache, and how many tokens of the prompt are read at once.

    Rows that a window has left behind are used again; a long prompt is then read in pieces.
    """
    rows = width + room
    if config.n_context is not None:
        rows = max(min(rows, config.n_context), width)
    if config.horizon is None:
        return rows, width
    piece = min(width, bucket(config.horizon))
    piece = piece if width % piece == 0 else width
    return min(rows, config.horizon + piece - 1), piece


def narrowed(params: Params, compute: Compute) -> Params:
    """The parameters in the dtype to compute in: once, before a loop that would do it at every token."""
    dtype = compute.dtype
    return params if dtype is None else jax.tree.map(lambda array: array.astype(dtype), params)


def _read_in_pieces(
    params: Params,
    how: How,
    since: Int[Array, "..."] | None,
    prompts: Int[Array, "b t"],
    cache: Cache,
    lengths: Int[Array, "..."],
    piece: int,
) -> Read:
    """The prompts so many tokens at a time: no more need to be kept than a window and a piece."""

    def turn(read: Read, start: Array) -> tuple[Read, None]:
        tokens = jax.lax.dynamic_slice_in_dim(prompts, start, piece, axis=1)
        cache = read.cache._replace(length=jnp.zeros_like(lengths) + start)
        new = read_on(
            params, how, since, tokens, cache, jnp.clip(lengths - 1 - start, 0, piece - 1)
        )
        goes_on = start < lengths  # a prompt that has ended stays as it is

        def newer(axis: int, new: Array, old: Array) -> Array:
            shape = [1] * new.ndim
            shape[axis] = -1
            return jnp.where(goes_on.reshape(shape) if goes_on.ndim else goes_on, new, old)

        logits, activations = jax.tree.map(partial(newer, 0), new[:2], read[:2])
        k, v = jax.tree.map(partial(newer, batch_axis(cache)), new.cache[:2], read.cache[:2])
        return Read(logits, activations, Cache(k, v, lengths)), None

    shapes = jax.eval_shape(
        lambda: read_on(params, how, since, prompts[:, :piece], cache, lengths * 0)
    )
    start = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    starts = jnp.arange(0, prompts.shape[1], piece, dtype=jnp.int32)
    return jax.lax.scan(turn, start._replace(cache=cache._replace(length=lengths)), starts)[0]


def _at(activations: dict[str, Array], place: Int[Array, ""]) -> dict[str, Array]:
    """The activations of one position, without their axis t."""
    return {
        site: jax.lax.dynamic_index_in_dim(
            value, 0 if site in READ else place, activation_axis(site), keepdims=False
        )
        for site, value in activations.items()
    }
