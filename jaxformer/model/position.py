"""Positional encodings: added to the embedding, or (rotary) applied to queries and keys."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxformer.config import Config, Rotary
from jaxformer.sites import Layer

Positions = Int[Array, " t"]
Frequencies = Float[Array, " pairs"]


def sinusoidal(positions: Positions, d_model: int) -> Float[Array, "t d"]:
    """Return sin and cos of p/10000^(2i/d_model), alternating along the stream.

    Source: Vaswani et al. 2017, "Attention Is All You Need", §3.5.
    """
    angles = _angles(positions, _frequencies(d_model, 10_000.0))
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(len(positions), d_model)


ADDED: dict[str, Callable[..., Float[Array, "t d"]]] = {
    "sinusoidal": lambda _, config, positions: sinusoidal(positions, config.d_model),
    # A position past the end of the table gives NaN; plain indexing would repeat the last row.
    "learned": lambda W_pos, _, positions: W_pos.at[positions].get(
        mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    ),
}
"""The encodings that are added to the embedding, as functions of (W_pos, config, positions)."""


def rotate(
    vectors: Float[Array, "t n h"], positions: Positions, config: Config, layer: Layer = None
) -> Float[Array, "t n h"]:
    """Rotate each pair of coordinates (i, i + pairs) of a query or key by its position times frequency_i.

    The dot product of a query and a key then depends on the distance between them, not on their positions.

    Source: Su et al. 2021, "RoFormer", eq. 15, paired by halves as in GPT-NeoX and LLaMA.
    """
    angles = _angles(positions, rotary_frequencies(config, layer))[:, None, :]
    pairs, cos, sin = angles.shape[-1], jnp.cos(angles), jnp.sin(angles)
    left, right, rest = jnp.split(vectors, [pairs, 2 * pairs], axis=-1)
    a, b = left.astype(angles.dtype), right.astype(angles.dtype)
    rotated = [(a * cos - b * sin), (a * sin + b * cos)]
    return jnp.concatenate([*(x.astype(vectors.dtype) for x in rotated), rest], axis=-1)


def rotary_frequencies(config: Config, layer: Layer = None) -> Frequencies:
    """Return each pair's rotation per position in this layer, in radians: base^(-2i/width), then scaled.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=0, n_vocab=5, position="rotary",
    ...                 window=3, window_pattern="LG", rotary=Rotary(base=100.0, local_base=4.0))
    >>> rotary_frequencies(config, 0), rotary_frequencies(config, 1)
    (Array([1. , 0.5], dtype=float32), Array([1. , 0.1], dtype=float32))
    """
    width, rotary = config.rotary_width, config.rotary
    scaled = SCALINGS[rotary.scaling](rotary, _frequencies(width, rotary.base))
    if rotary.local_base is None or config.window is None:
        return scaled
    return jnp.where(is_local(config, layer), _frequencies(width, rotary.local_base), scaled)


def _llama3(rotary: Rotary, frequencies: Frequencies) -> Frequencies:
    """Divide low frequencies by the whole factor, high ones by nothing, and blend between the two.

    Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models", §3.2; its published code, `apply_scaling`.
    """
    turns = (rotary.original_context or 0) * frequencies / (2 * math.pi)
    kept = (turns - rotary.low_turns) / (rotary.high_turns - rotary.low_turns)
    kept = jnp.clip(kept, 0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / rotary.factor


SCALINGS: dict[str, Callable[[Rotary, Frequencies], Frequencies]] = {
    "none": lambda _, frequencies: frequencies,
    "linear": lambda rotary, frequencies: frequencies / rotary.factor,
    "llama3": _llama3,
}
"""What rotary.scaling does to the frequencies, for texts longer than those of training."""


def restarted(segments: Integer[Array, " t"]) -> Positions:
    """Return each token's position in its document, which begins where the segment changes: [7 7 2 7] → [0 1 0 0]."""
    index = jnp.arange(len(segments), dtype=jnp.int32)
    begins = jnp.append(True, segments[1:] != segments[:-1])[: len(index)]
    return index - jax.lax.cummax(jnp.where(begins, index, 0))


def is_local(config: Config, layer: Layer) -> Bool[Array, ""]:
    """Say whether a layer attends within the window; `layer` may be None if all layers are alike."""
    local = config.local_layers or (False,)
    return jnp.array(local)[0 if len({*local}) == 1 else layer_index(config, layer)]


def layer_index(config: Config, layer: Layer) -> Int[Array, ""]:
    """Return the layer's index as an array."""
    if not isinstance(layer, jax.Array) and layer not in range(config.n_layers):
        raise ValueError(
            f"layer={layer!r}, but the layers of this Config differ: give an index below n_layers={config.n_layers}"
        )
    return jnp.asarray(layer, jnp.int32)


def _frequencies(width: int, base: float) -> Frequencies:
    """base^(-2i/width), in the widest float that JAX has switched on."""
    return base ** -(jnp.arange(0, width, 2).astype(jnp.result_type(float)) / width)


def _angles(positions: Positions, frequencies: Frequencies) -> Float[Array, "t pairs"]:
    return positions.astype(frequencies.dtype)[:, None] * frequencies
