"""What attention keeps of the tokens it has seen: their keys and values, in any dtype, or as 8-bit integers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8, Num

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

    With `Config.window` it takes tokens without end, if they come at most capacity - window + 1 at a time.

    Args:
        config: of the model.
        capacity: its rows.
        dtype: of keys and values; "int8" keeps them as `Quantized`.

    Raises:
        ValueError: a capacity below 1, a dtype that is neither a float's nor int8.
    """
    if capacity < 1:
        raise ValueError(f"capacity={capacity} must be at least 1")
    dtype = jnp.dtype(dtype)
    if dtype != jnp.int8 and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"a cache of {dtype} cannot be; choose a float or int8")
    shape = (config.n_layers, config.sizes["k"], capacity, config.d_head)

    def empty() -> Any:
        rows = jnp.zeros(shape, dtype)
        return Quantized(rows, jnp.zeros((*shape[:-1], 1))) if dtype == jnp.int8 else rows

    return Cache(empty(), empty(), jnp.zeros((), jnp.int32))


def capacity(cache: Cache) -> int:
    """The number of rows."""
    return jax.tree.leaves(cache.k)[0].shape[-2]


def endless(config: Config, rows: int, tokens: int) -> bool:
    """Whether rows can go round for ever: all that a window shows is still there after so many new tokens."""
    return config.window is not None and rows >= config.window + tokens - 1


def remember(
    past: Past,
    config: Config,
    k: Float[Array, "k t h"],
    v: Float[Array, "k t h"],
    start: Int[Array, ""],
) -> Past:
    """The past with the keys and values of the positions from `start` on written into it."""
    return Past(_write(past.k, config, k, start), _write(past.v, config, v, start))


def recall(stored: Stored, dtype: Any) -> Float[Array, "k s h"]:
    """All rows, as an array to compute with."""
    if isinstance(stored, Quantized):
        return (stored.values.astype(stored.scale.dtype) * stored.scale).astype(dtype)
    return stored.astype(dtype)


def row_positions(config: Config, rows: int, last: Int[Array, ""]) -> Int[Array, " s"]:
    """The position that each row holds once `last` is written; below 0 or above `last` if none yet."""
    row = jnp.arange(rows, dtype=jnp.int32)
    return row if config.window is None else last - (last - row) % rows


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
    old: Num[Array, "k s h"], config: Config, new: Num[Array, "k t h"], start: Array
) -> Num[Array, "k s h"]:
    rows, tokens = old.shape[1], new.shape[1]
    if config.window is not None and tokens > 1:  # these may go over the end and on at the start
        places = (start + jnp.arange(tokens, dtype=jnp.int32)) % rows
        return old.at[:, places].set(new)
    first = start if config.window is None else start % rows
    return jax.lax.dynamic_update_slice(
        old, new, (jnp.zeros_like(start), first, jnp.zeros_like(start))
    )
