"""Norms with their scale taken for given: then each part of a sum has its own part of the normed sum."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.interp.components import captured
from jaxformer.model.norm import CENTRES, norm_gain
from jaxformer.model.params import Norm


def frozen(
    norm: Norm, config: Config, parts: Float[Array, "*c t d"], scale: Float[Array, "*#c t 1"]
) -> Float[Array, "*c t d"]:
    """Parts of a state through a norm whose scale is given: they sum to the normed state less the norm's bias."""
    gain = norm_gain(norm.w.astype(scale.dtype), config)
    return CENTRES[config.norm](parts.astype(scale.dtype)) / scale * gain


def taken_back(
    norm: Norm, config: Config, direction: Float[Array, "*r d"], scale: Float[Array, "t 1"]
) -> Float[Array, "t d"]:
    """What a part is multiplied with before a norm of this scale, for its product with a direction after it."""
    # The centring is symmetric: centre(x)·y = x·centre(y).
    gained = direction.astype(scale.dtype) * norm_gain(norm.w.astype(scale.dtype), config)
    return CENTRES[config.norm](gained) / scale


def added(
    kind: str,
    norm: Norm | None,
    config: Config,
    activations: Mapping[str, Array],
    parts: Float[Array, "l c t d"],
) -> Float[Array, "l c t d"]:
    """What the parts of each layer's sum add to the stream, through the norm that may follow the sum."""
    if norm is None:
        return parts
    layers = len(parts)
    scale = captured(activations, f"{kind}_post_scale")[0][:layers]
    norms = jax.tree.map(lambda stack: stack[:layers], norm)
    through = jax.vmap(lambda norm, parts, scale: frozen(norm, config, parts, scale))
    return through(norms, parts, scale).astype(parts.dtype)


def added_biases(
    kind: str,
    norm: Norm | None,
    b: Float[Array, "l d"] | None,
    config: Config,
    activations: Mapping[str, Array],
    layers: int,
    t: int,
) -> list[Float[Array, "..."]]:
    """What the bias of each layer's sum adds to the stream, and the bias of the norm that may follow it."""
    found = []
    if b is not None and norm is None:
        found.append(b[:layers])
    elif b is not None:
        each = jnp.broadcast_to(b[:layers, None, None], (layers, 1, t, b.shape[-1]))
        found.append(added(kind, norm, config, activations, each)[:, 0])
    if norm is not None and norm.b is not None:
        found.append(norm.b[:layers])
    return found
