"""Where a token is: added to its embedding, or turned into its queries and keys."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import Config


def sinusoidal(positions: Int[Array, " t"], d_model: int) -> Float[Array, "t d"]:
    """Sin and cos of p/10000^(2i/d_model), in turn along the stream.

    Source: Vaswani et al. 2017, "Attention Is All You Need", §3.5.

    >>> sinusoidal(jnp.arange(1), 4)
    Array([[0., 1., 0., 1.]], dtype=float32)
    """
    angles = _angles(positions, _frequencies(d_model, 10_000.0))
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(len(positions), d_model)


def learned(positions: Int[Array, " t"], rows: Float[Array, "c d"]) -> Float[Array, "t d"]:
    """The table's rows at these positions; NaN past its end, where indexing would repeat the last row."""
    return rows.at[positions].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def rotary(
    positions: Int[Array, " t"], vectors: Float[Array, "t n h"], frequencies: Float[Array, " pairs"]
) -> Float[Array, "t n h"]:
    """Turn pairs (i, i + pairs) of the first 2·pairs coordinates by p·frequency_i.

    A query's product with a key then depends on their distance only.

    Source: Su et al. 2021, "RoFormer", eq. 15, paired by halves as in GPT-NeoX and LLaMA.
    """
    width = 2 * len(frequencies)
    angles = _angles(positions, frequencies)[:, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right, rest = jnp.split(vectors, [width // 2, width], axis=-1)
    a, b = left.astype(angles.dtype), right.astype(angles.dtype)
    turned = [(a * cos - b * sin), (a * sin + b * cos)]
    return jnp.concatenate([*(x.astype(vectors.dtype) for x in turned), rest], axis=-1)


def rotary_frequencies(config: Config, layer: Int[Array, ""]) -> Float[Array, " pairs"]:
    """What each pair turns by from one position to the next in this layer, in radians: base^(-2i/width), scaled.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=0, n_vocab=5, position="rotary",
    ...                 window=3, window_pattern="LG", rotary_base=100.0, local_rotary_base=4.0)
    >>> rotary_frequencies(config, jnp.int32(0)), rotary_frequencies(config, jnp.int32(1))
    (Array([1. , 0.5], dtype=float32), Array([1. , 0.1], dtype=float32))
    """
    width = config.rotary_width
    scaled = SCALINGS[config.rotary_scaling](config, _frequencies(width, config.rotary_base))
    if config.local_rotary_base is None or not config.n_layers:
        return scaled
    local = _frequencies(width, config.local_rotary_base)
    return jnp.where(jnp.array(config.local_layers)[layer], local, scaled)


def _llama3(config: Config, frequencies: Float[Array, " pairs"]) -> Float[Array, " pairs"]:
    """Slow turns by the whole factor, fast ones not at all, those between by a part that grows with their wavelength.

    Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models", §3.2; its published code, `apply_scaling`.
    """
    turns = (config.rotary_context or 0) * frequencies / (2 * math.pi)  # in the training texts
    kept = (turns - config.rotary_low) / (config.rotary_high - config.rotary_low)
    kept = jnp.clip(kept, 0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / config.rotary_factor


SCALINGS: dict[str, Callable[[Config, Float[Array, " pairs"]], Float[Array, " pairs"]]] = {
    "none": lambda _, frequencies: frequencies,
    "linear": lambda config, frequencies: frequencies / config.rotary_factor,
    "llama3": _llama3,
}


def _frequencies(width: int, base: float) -> Float[Array, " pairs"]:
    """base^(-2i/width), in the widest float that JAX has switched on."""
    return base ** -(jnp.arange(0, width, 2).astype(jnp.result_type(float)) / width)


def _angles(
    positions: Int[Array, " t"], frequencies: Float[Array, " pairs"]
) -> Float[Array, "t pairs"]:
    """Position times frequency."""
    return positions.astype(frequencies.dtype)[:, None] * frequencies


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
