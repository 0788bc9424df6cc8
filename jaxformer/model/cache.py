"""What attention keeps of the tokens it has seen: their keys and values, in any dtype, or as 8-bit integers."""

from typing import Any, NamedTuple

import jax
import jax.custom_batching
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8, Shaped

from jaxformer.config import Config


class Quantized(NamedTuple):
    """Vectors as 8-bit integers: each is its whole numbers times a scale of its own."""

    values: Int8[Array, "*l k s h"]
    scale: Float[Array, "*l k s 1"]


Stored = Any  # Float[Array, "*l k s h"] or Quantized


class Past(NamedTuple):
    """One layer's keys and values of the positions seen so far; with `l` where layers are stacked.

    Position p lies in row p, or, where a window lets the rows go round, in row p modulo their number.
    """

    k: Stored
    v: Stored


class Cache(NamedTuple):
    """The keys and values of every layer, and the number of tokens that gave them.

    Where the parameters' blocks are a list (see `unstack`), so are these, and either may hold `Quantized`.
    """

    k: Float[Array, "l k s h"]
    v: Float[Array, "l k s h"]
    length: Int[Array, ""]


def empty_cache(config: Config, capacity: int, dtype: Any = jnp.float32) -> Cache:
    """A cache with room for `capacity` tokens and none in it.

    Where every layer has a window it takes tokens without end, if they come at most capacity - window + 1 at a time.

    Args:
        capacity: its rows.
        dtype: of keys and values; "int8" keeps them as `Quantized`, through which no true derivative passes:
            rounding has none.

    Raises:
        ValueError: a capacity below 1; a dtype that is neither a float's nor int8, or that JAX has switched off.
    """
    if capacity < 1:
        raise ValueError(f"capacity={capacity} must be at least 1")
    try:
        kind = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype={dtype!r} is no dtype; choose a float or int8") from error
    if kind != jnp.int8 and not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"a cache of {kind} cannot be; choose a float or int8")
    if jax.dtypes.canonicalize_dtype(kind) != kind:
        raise ValueError(
            f'a cache of {kind} needs 64-bit JAX; call jax.config.update("jax_enable_x64", True) first'
        )
    shape = _shape(config, capacity)

    def empty() -> Any:
        rows = jnp.zeros(shape, kind)
        if kind != jnp.int8:
            return rows
        return Quantized(rows, jnp.zeros((*shape[:-1], 1), jnp.float32))

    return Cache(empty(), empty(), jnp.zeros((), jnp.int32))


def capacity(cache: Cache) -> int:
    """The number of rows."""
    return jax.tree.leaves(cache.k)[0].shape[-2]


def batch_axis(cache: Cache) -> int:
    """Where the arrays of a batch's cache have the batch: in front, or behind layers that are stacked."""
    return 0 if isinstance(cache.k, list) else 1


def check_cache(cache: Cache, config: Config, tokens: int) -> None:
    """Refuse a cache of another model, or one with fewer rows than tokens come at once.

    Raises:
        ValueError: naming the shapes or the number of rows.
    """
    rows = capacity(cache)
    needed = _shape(config, rows)
    for name, stored in (("k", cache.k), ("v", cache.v)):
        layers = (len(stored),) if isinstance(stored, list) else ()
        shape = (*layers, *jax.tree.leaves(stored)[0].shape)
        if shape != needed:
            raise ValueError(
                f"the cache's {name} holds {shape}, this Config needs {needed}; make it by empty_cache(config, ...)"
            )
    if not jnp.issubdtype(jnp.result_type(cache.length), jnp.integer):
        raise ValueError(f"the cache's length is {jnp.result_type(cache.length)}, no whole number")
    if tokens > rows:
        raise ValueError(
            f"{tokens} tokens are too many: the cache has room for {rows}; give at most {rows}"
        )


def _shape(config: Config, rows: int) -> tuple[int, ...]:
    return (config.n_layers, config.sizes["k"], rows, config.d_head)


def endless(config: Config, rows: int, tokens: int) -> bool:
    """Whether rows can go round for ever: all that a window shows is still there after so many new tokens."""
    return config.horizon is not None and rows >= config.horizon + tokens - 1


def remember(
    past: Past,
    config: Config,
    k: Float[Array, "k t h"],
    v: Float[Array, "k t h"],
    start: Int[Array, ""],
) -> Past:
    """The past with the keys and values of the positions from `start` on written into it."""
    return Past(_write(past.k, config, k, start), _write(past.v, config, v, start))


def recall(stored: Stored, dtype: Any) -> Float[Array, "*k s h"]:
    """All rows, as an array to compute with."""
    if isinstance(stored, Quantized):
        return (stored.values.astype(stored.scale.dtype) * stored.scale).astype(dtype)
    return stored.astype(dtype)


def row_positions(config: Config, rows: int, last: Int[Array, ""]) -> Int[Array, " s"]:
    """The position that each row holds once `last` is written; below 0 or above `last` if none yet."""
    row = jnp.arange(rows, dtype=jnp.int32)
    return row if config.horizon is None else last - (last - row) % rows


def quantized(vectors: Float[Array, "*n h"]) -> Quantized:
    """Each vector as whole numbers from -127 to 127 and the scale that its largest coordinate needs.

    The error of a coordinate is at most 1/254 of the largest.

    >>> quantized(jnp.array([[127.0, -63.5]]))
    Quantized(values=Array([[127, -64]], dtype=int8), scale=Array([[1.]], dtype=float32))
    """
    vectors = vectors.astype(jnp.float32)
    scale = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True) / 127
    whole = jnp.round(vectors / jnp.where(scale > 0, scale, 1.0))
    return Quantized(whole.astype(jnp.int8), scale)


def _write(stored: Stored, config: Config, new: Float[Array, "k t h"], start: Array) -> Stored:
    if isinstance(stored, Quantized):
        parts = zip(stored, quantized(new), strict=True)
        return Quantized(*(_write_rows(old, config, part, start) for old, part in parts))
    return _write_rows(stored, config, new.astype(stored.dtype), start)


def _write_rows(
    old: Shaped[Array, "k s h"], config: Config, new: Shaped[Array, "k t h"], start: Array
) -> Shaped[Array, "k s h"]:
    rows, tokens = old.shape[1], new.shape[1]
    if config.horizon is not None:
        start = start % rows
        if tokens > 1:  # these may go over the end and on at the beginning
            places = (start + jnp.arange(tokens, dtype=jnp.int32)) % rows
            return old.at[:, places].set(new)
    differentiable = jnp.issubdtype(old.dtype, jnp.floating)
    return (_put if differentiable else _put_in_place)(old, new, start)


def _update(
    old: Shaped[Array, "*b k s h"], new: Shaped[Array, "*b k t h"], start: Int[Array, ""]
) -> Shaped[Array, "*b k s h"]:
    # A fence: without it XLA on CPU writes into one copy for its reader here and another for the next step.
    return jax.lax.optimization_barrier(
        jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=-2)
    )


@jax.custom_batching.custom_vmap
def _put_in_place(old: Array, new: Array, start: Array) -> Array:
    """`_update`, for which `jax.vmap` would put a scatter, which XLA runs on copies of the whole cache."""
    return _update(old, new, start)


@_put_in_place.def_vmap
def _(size: int, batched: list[bool], old: Array, new: Array, start: Array) -> tuple[Array, bool]:
    old, new = (
        x if already else jnp.broadcast_to(x, (size, *x.shape))
        for x, already in zip((old, new), batched, strict=False)
    )
    if not batched[2]:
        return _put_in_place(old, new, start), True

    def turn(index: Array, old: Array) -> Array:
        index = index.astype(start.dtype)  # a loop of known length counts in int64 in 64-bit JAX
        one, zero = jax.lax.dynamic_index_in_dim(new, index), jnp.zeros_like(index)
        place = (index, *[zero] * (old.ndim - 3), start[index], zero)
        return jax.lax.dynamic_update_slice(old, one, place)

    return jax.lax.fori_loop(0, size, turn, old), True


@jax.custom_jvp
def _put(old: Array, new: Array, start: Array) -> Array:
    return _put_in_place(old, new, start)


@_put.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (old, new, start), (d_old, d_new, _) = primals, tangents
    return _put(old, new, start), _update(d_old, d_new, start)
