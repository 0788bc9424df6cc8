"""Where a token is: added to its embedding, or turned into its queries and keys."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import Config
from jaxformer.spec import Stand, table


def position_spec(config: Config, std: float) -> Stand:
    """The Spec of the position table, or None where positions are not learned."""
    return table(config, "c d", std) if config.position == "learned" else None


def sinusoidal(positions: Int[Array, " t"], d_model: int) -> Float[Array, "t d"]:
    """Sin and cos of p/10000^(2i/d_model), in turn along the stream.

    Source: Vaswani et al. 2017, "Attention Is All You Need", §3.5.

    >>> sinusoidal(jnp.arange(1), 4)
    Array([[0., 1., 0., 1.]], dtype=float32)
    """
    angles = _angles(positions, d_model, 10_000.0)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(len(positions), d_model)


def learned(positions: Int[Array, " t"], rows: Float[Array, "c d"]) -> Float[Array, "t d"]:
    """The table's rows at these positions; NaN past its end, where indexing would repeat the last row."""
    return rows.at[positions].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def rotary(
    positions: Int[Array, " t"], vectors: Float[Array, "t n h"], width: int, base: float
) -> Float[Array, "t n h"]:
    """Turn pairs (i, i + width/2) of the first `width` coordinates by p/base^(2i/width).

    A query's product with a key then depends on their distance only.

    Source: Su et al. 2021, "RoFormer", eq. 15, paired by halves as in GPT-NeoX and LLaMA.
    """
    angles = _angles(positions, width, base)[:, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right, rest = jnp.split(vectors, [width // 2, width], axis=-1)
    a, b = left.astype(angles.dtype), right.astype(angles.dtype)
    turned = [(a * cos - b * sin), (a * sin + b * cos)]
    return jnp.concatenate([*(x.astype(vectors.dtype) for x in turned), rest], axis=-1)


def _angles(positions: Int[Array, " t"], width: int, base: float) -> Float[Array, "t pairs"]:
    """Position times frequency, in the widest float that JAX has switched on."""
    wide = jnp.result_type(float)
    frequencies = base ** -(jnp.arange(0, width, 2).astype(wide) / width)
    return positions.astype(wide)[:, None] * frequencies


def position_embedding(
    W_pos: Float[Array, "c d"] | None, config: Config, positions: Int[Array, " t"]
) -> Float[Array, "t d"] | None:
    """What the position scheme adds to the embedding; None if it adds nothing."""
    added = ADDED[config.position]
    return None if added is None else added(W_pos, config, positions)


ADDED: dict[str, Callable[..., Float[Array, "t d"]] | None] = {
    "none": None,
    "sinusoidal": lambda _, config, positions: sinusoidal(positions, config.d_model),
    "learned": lambda W_pos, _, positions: learned(positions, W_pos),
    "rotary": None,
}
