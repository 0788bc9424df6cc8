"""Norms: a layer's reading of the stream at a common scale. The stream itself stays as it is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.model.params import Norm
from jaxformer.model.stream import recomputed, wide, widened
from jaxformer.model.tap import Tap


def normalize(
    norm: Norm | None, config: Config, state: Float[Array, "t d"], tap: Tap, site: str
) -> Float[Array, "t d"]:
    """The states divided by their scale: centre(x)/√(mean(centre(x)²) + ε) · w + b.

    Computed in float32 or wider. The scale, `t 1`, is shown at `site`.

    Source: Ba et al. 2016, "Layer Normalization", eq. 4; Zhang & Sennrich 2019, "Root Mean Square
    Layer Normalization", eq. 4.
    """
    if norm is None:
        return state
    dtype = wide(state.dtype)
    centre = CENTRES[config.norm]

    @recomputed
    def spread(state: Float[Array, "t d"]) -> Float[Array, "t 1"]:
        return _size(centre(state.astype(dtype)), config, -1)

    @recomputed
    def scaled(state: Float[Array, "t d"], scale: Float[Array, "t 1"]) -> Float[Array, "t d"]:
        normed = centre(state.astype(dtype)) / scale * norm_gain(norm.w.astype(dtype), config)
        return normed if norm.b is None else normed + norm.b.astype(dtype)

    normed = scaled(state, tap(site, spread(state)))
    # A fence: fused into one product with what reads it, the norm slows that product down on CPU.
    return jax.lax.optimization_barrier(normed.astype(state.dtype))


def norm_gain(w: Float[Array, "..."], config: Config) -> Float[Array, "..."]:
    """What a norm multiplies by: its weight, or 1 + that."""
    return 1 + w if config.norm_plus_one else w


def normalize_heads(
    vectors: Float[Array, "t n h"], w: Float[Array, "*n h"] | None, config: Config
) -> Float[Array, "t n h"]:
    """Queries or keys, each head's divided by its root mean square, or all heads' by that of all together.

    Source: Henry et al. 2020, "Query-Key Normalization for Transformers", with RMS norms as in Qwen3 and OLMo 2.
    """
    if w is None:
        return vectors
    axes = -1 if config.qk_norm == "head" else (-2, -1)

    @recomputed
    def scaled(vectors: Float[Array, "t n h"]) -> Float[Array, "t n h"]:
        wider = widened(vectors)
        normed = wider / _size(wider, config, axes) * norm_gain(w.astype(wider.dtype), config)
        return normed.astype(vectors.dtype)

    return scaled(vectors)


def _size(
    values: Float[Array, "..."], config: Config, axes: int | tuple[int, int]
) -> Float[Array, "..."]:
    """√(mean(x²) + ε) over some axes, which stay as 1."""
    return jnp.sqrt(jnp.mean(jnp.square(values), axis=axes, keepdims=True) + config.norm_epsilon)


CENTRES: dict[str, Callable[[Float[Array, "t d"]], Float[Array, "t d"]]] = {
    "layer": lambda state: state - jnp.mean(state, axis=-1, keepdims=True),
    "rms": lambda state: state,
}
