"""Norms: a layer reads the stream at a common scale. The stream itself is not changed."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.model.cpu import fence, recomputed
from jaxformer.model.params import Norm
from jaxformer.model.stream import Values, upcast
from jaxformer.model.tap import Tap


def normalize(
    norm: Norm | None, config: Config, state: Float[Array, "t d"], *, tap: Tap = Tap(), site: str = "scale"
) -> Float[Array, "t d"]:  # fmt: skip
    """Divide each state by its scale: centre(x)/√(mean(centre(x)²) + ε) · w + b, in float32 or wider.

    Without a norm the state is unchanged. The scale, `t 1`, is captured and edited at `site`.

    Source: Ba et al. 2016, "Layer Normalization"; Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".

    >>> config = Config(n_layers=1, d_model=2, n_heads=1, d_head=2, d_mlp=0, n_vocab=5, norm="rms")
    >>> normalize(Norm(w=jnp.ones(2), b=None), config, jnp.array([[3.0, -3.0]])).round(2)
    Array([[ 1., -1.]], dtype=float32)
    """
    if norm is None:
        return state

    def scale_of(state: Values) -> Values:
        return root_mean_square(CENTRES[config.norm](upcast(state)), config, -1)

    def divided(state: Values, scale: Values) -> Values:
        normed = CENTRES[config.norm](upcast(state)) / scale * norm_gain(upcast(norm.w), config)
        return normed if norm.b is None else normed + upcast(norm.b)

    scale = tap(site, recomputed(scale_of)(state))
    return fence(recomputed(divided)(state, scale).astype(state.dtype))


def normalize_heads(
    vectors: Float[Array, "t n h"], w: Float[Array, "*n h"] | None, config: Config
) -> Float[Array, "t n h"]:
    """Divide queries or keys by their root mean square: each head's by its own, or with qk_norm="all" by all heads'.

    Source: Henry et al. 2020, "Query-Key Normalization for Transformers", with RMS norms as in Qwen3 and OLMo 2.
    """

    def divided(vectors: Values, w: Values) -> Values:
        scale = root_mean_square(vectors, config, -1 if config.qk_norm == "head" else (-2, -1))
        return vectors / scale * norm_gain(w, config)

    return vectors if w is None else recomputed(divided)(upcast(vectors), upcast(w)).astype(vectors.dtype)  # fmt: skip


def root_mean_square(values: Values, config: Config, axes: int | tuple[int, int]) -> Values:
    """√(mean(x²) + ε) over some axes, which keep size 1."""
    return jnp.sqrt(jnp.mean(jnp.square(values), axis=axes, keepdims=True) + config.norm_epsilon)


def norm_gain(w: Values, config: Config) -> Values:
    """The factor of a norm: its weight, or 1 + its weight with `norm_plus_one`."""
    return 1 + w if config.norm_plus_one else w


CENTRES: dict[str, Callable[[Values], Values]] = {
    "layer": lambda state: state - jnp.mean(state, axis=-1, keepdims=True),
    "rms": lambda state: state,
}
"""What each norm subtracts before it divides: LayerNorm the mean, RMSNorm nothing."""
