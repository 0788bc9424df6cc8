"""The key/value cache: what attention keeps of earlier tokens, in a float dtype or as 8-bit integers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8, Integer, Shaped

from jaxformer.config import Config
from jaxformer.model.cpu import fence


class Quantized(NamedTuple):
    """Vectors as 8-bit integers. Each vector is its integers times a scale of its own."""

    values: Int8[Array, "*l k s h"]
    scale: Float[Array, "*l k s 1"]


Stored = Any  # Float[Array, "*l k s h"] or Quantized


class Cache(NamedTuple):
    """The keys and values of every layer, and the number of tokens that they belong to.

    k and v are lists of layers if the parameters' blocks are a list (see `unstack`); int8 ones hold `Quantized`.
    Position p lies in row p; in a rolling cache (`is_rolling`) in row p modulo the number of rows.
    """

    k: Float[Array, "l k s h"]
    v: Float[Array, "l k s h"]
    length: Int[Array, ""]


class LayerCache:
    """One layer's keys and values while that layer is traced. Like a Tap, it is filled in place, then read out."""

    def __init__(self, config: Config, k: Stored, v: Stored):
        self.config, self.k, self.v = config, k, v

    def extend(
        self, k: Float[Array, "k t h"], v: Float[Array, "k t h"], positions: Int[Array, " t"]
    ) -> tuple[Float[Array, "k s h"], Float[Array, "k s h"], Int[Array, " s"]]:
        """Add the keys and values of new positions; return those of all rows, and the position of each row."""
        if len(positions):
            self.k = write(self.k, self.config, k, positions[0])
            self.v = write(self.v, self.config, v, positions[0])
        rows = row_positions(self.config, rows_of(self.k), positions)
        return read(self.k, k.dtype), read(self.v, v.dtype), rows


def empty_cache(config: Config, capacity: int, dtype: Any = jnp.float32) -> Cache:
    """Return a cache with room for `capacity` tokens.

    If every layer has a window, the cache takes any number of tokens, as long as a call adds at most
    capacity - window + 1 of them.

    Args:
        capacity: its number of rows.
        dtype: of keys and values. "int8" stores them as `Quantized`; no exact derivative passes through its rounding.

    Raises:
        ValueError: a capacity below 1; a dtype that is neither a float nor int8, or that JAX has switched off.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> empty_cache(config, capacity=16).k.shape
    (2, 2, 16, 4)
    """
    if capacity < 1:
        raise ValueError(f"capacity={capacity} must be at least 1")
    try:
        kind = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype={dtype!r} is not a dtype; choose a float or int8") from error
    if kind != jnp.int8 and not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"a cache cannot hold dtype={kind}; choose a float or int8")
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
    return rows_of(cache.k)


def rows_of(stored: Stored) -> int:
    """The number of rows of keys or values."""
    return jax.tree.leaves(stored)[0].shape[-2]


def batch_axis(cache: Cache) -> int:
    """The batch axis of a batch of caches: the first axis, or the second if stacked layers come first."""
    return 0 if isinstance(cache.k, list) else 1


def check_cache(cache: Cache, config: Config, tokens: int, *, listed: bool) -> None:
    """Refuse a cache of another model, or one with fewer rows than there are tokens.

    Raises:
        ValueError: naming the shapes or the number of rows.
    """
    if not isinstance(cache, Cache):
        raise ValueError(f"cache={cache!r} is not a Cache; make one by empty_cache(config, ...)")
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
        raise ValueError(
            f"the cache's length is {jnp.result_type(cache.length)}; it must be an integer"
        )
    if tokens > rows:
        raise ValueError(
            f"{tokens} tokens are too many: the cache has room for {rows}; give at most {rows}"
        )
    if listed != isinstance(cache.k, list):
        raise ValueError(
            "only one of the parameters and the cache is unstacked; call unstack on both or on none"
        )


def _shape(config: Config, rows: int) -> tuple[int, ...]:
    return (config.n_layers, config.sizes["k"], rows, config.d_head)


def is_rolling(config: Config, rows: int, tokens: int) -> bool:
    """Say whether new tokens may overwrite the oldest rows, because no window reaches back to the oldest rows."""
    return config.max_lookback is not None and rows >= config.max_lookback + tokens - 1


def place_tokens(
    cache: Cache, config: Config, tokens: Integer[Array, " t"]
) -> tuple[Int[Array, " t"], Integer[Array, " t"]]:
    """Return the positions of new tokens, and the tokens: if they do not fit, -1, which gives NaN."""
    length, rows = jnp.asarray(cache.length, jnp.int32), capacity(cache)
    positions = length + jnp.arange(len(tokens), dtype=jnp.int32)
    if is_rolling(config, rows, len(tokens)):
        return positions, tokens
    tokens = tokens if tokens.dtype.itemsize >= 4 else tokens.astype(jnp.int32)
    return positions, jnp.where(length + len(tokens) <= rows, tokens, jnp.full_like(tokens, -1))


def write(stored: Stored, config: Config, new: Float[Array, "k t h"], start: Array) -> Stored:
    """Write new vectors into the rows of the positions from `start` on, and return all rows."""
    if isinstance(stored, Quantized):
        parts = zip(stored, quantized(new), strict=True)
        return Quantized(*(_write_rows(old, config, part, start) for old, part in parts))
    return _write_rows(stored, config, new.astype(stored.dtype), start)


def read(stored: Stored, dtype: Any) -> Float[Array, "*k s h"]:
    """Return all rows as an array of floats."""
    if isinstance(stored, Quantized):
        return (stored.values.astype(stored.scale.dtype) * stored.scale).astype(dtype)
    return stored.astype(dtype)


def row_positions(config: Config, rows: int, positions: Int[Array, " t"]) -> Int[Array, " s"]:
    """Return the position that each row holds after a write; an empty row has one below 0 or past `positions`."""
    row = jnp.arange(rows, dtype=jnp.int32)
    if config.max_lookback is None or not len(positions):
        return row
    return positions[-1] - (positions[-1] - row) % rows


def quantized(vectors: Float[Array, "*n h"]) -> Quantized:
    """Round each vector to integers from -127 to 127, times the scale that its largest coordinate needs.

    The error of a coordinate is at most 1/254 of the vector's largest absolute coordinate.

    >>> quantized(jnp.array([[127.0, -63.5]]))
    Quantized(values=Array([[127, -64]], dtype=int8), scale=Array([[1.]], dtype=float32))
    """
    vectors = vectors.astype(jnp.float32)
    scale = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True) / 127
    rounded = jnp.round(vectors / jnp.where(scale > 0, scale, 1.0))
    return Quantized(rounded.astype(jnp.int8), scale)


def _write_rows(
    old: Shaped[Array, "k s h"], config: Config, new: Shaped[Array, "k t h"], start: Array
) -> Shaped[Array, "k s h"]:
    rows, tokens = old.shape[1], new.shape[1]
    if config.max_lookback is not None:
        start = start % rows
        if tokens > 1:  # the new rows may reach past the last row, and continue in the first
            places = (start + jnp.arange(tokens, dtype=jnp.int32)) % rows
            return old.at[:, places].set(new)
    return fence(jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1))
