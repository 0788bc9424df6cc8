"""Norms: a layer's reading of the stream at a common scale. The stream itself stays as it is."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.sites import Tap
from jaxformer.spec import constant
from jaxformer.stream import recomputed, wide


class Norm(NamedTuple):
    """Weight and bias per coordinate of the normed state; with a leading `l` where layers are stacked."""

    w: Float[Array, "*l d"]
    b: Float[Array, "*l d"] | None


def norm_spec(config: Config, axes: str) -> Norm | None:
    """The Specs of one norm, or None where the Config has no norms."""
    if config.norm == "none":
        return None
    biased = config.bias == "all" and config.norm == "layer"
    return Norm(constant(config, axes, 1.0), constant(config, axes, 0.0) if biased else None)


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
        mean_square = jnp.mean(jnp.square(centre(state.astype(dtype))), axis=-1, keepdims=True)
        return jnp.sqrt(mean_square + config.norm_epsilon)

    @recomputed
    def scaled(state: Float[Array, "t d"], scale: Float[Array, "t 1"]) -> Float[Array, "t d"]:
        normed = centre(state.astype(dtype)) / scale * norm.w.astype(dtype)
        return normed if norm.b is None else normed + norm.b.astype(dtype)

    normed = scaled(state, tap(site, spread(state)))
    # A fence: fused into one product with what reads it, the norm slows that product down on CPU.
    return jax.lax.optimization_barrier(normed.astype(state.dtype))


CENTRES: dict[str, Callable[[Float[Array, "t d"]], Float[Array, "t d"]]] = {
    "layer": lambda state: state - jnp.mean(state, axis=-1, keepdims=True),
    "rms": lambda state: state,
}
