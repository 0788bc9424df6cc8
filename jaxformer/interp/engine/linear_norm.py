"""Norms with a given scale. Such a norm is linear, so each component of a sum has its own part of the normed sum."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.interp.components import captured
from jaxformer.model.norm import CENTRES, norm_gain
from jaxformer.model.params import Norm


def frozen(
    norm: Norm,
    config: Config,
    components: Float[Array, "*component t d"],
    scale: Float[Array, "*#component t 1"],
) -> Float[Array, "*component t d"]:
    """Apply a norm with a given scale to the components of a state; they sum to the normed state minus its bias."""
    gain = norm_gain(norm.w.astype(scale.dtype), config)
    return CENTRES[config.norm](components.astype(scale.dtype)) / scale * gain


def pulled_back(
    norm: Norm, config: Config, direction: Float[Array, "*r d"], scale: Float[Array, "t 1"]
) -> Float[Array, "t d"]:
    """Pull a direction back through a norm with a given scale: norm(x)·direction = x·pulled_back(direction)."""
    # Centring is symmetric: centre(x)·y = x·centre(y).
    weighted = direction.astype(scale.dtype) * norm_gain(norm.w.astype(scale.dtype), config)
    return CENTRES[config.norm](weighted) / scale


def added(
    kind: str,
    norm: Norm | None,
    config: Config,
    activations: Mapping[str, Array],
    components: Float[Array, "l component t d"],
) -> Float[Array, "l component t d"]:
    """Return what the components of each layer's output add to the stream, through the norm after the layer, if any."""
    if norm is None:
        return components
    layers = len(components)
    scale = captured(activations, f"{kind}_post_scale")[0][:layers]
    norms = jax.tree.map(lambda stack: stack[:layers], norm)
    each = jax.vmap(lambda norm, components, scale: frozen(norm, config, components, scale))
    return each(norms, components, scale).astype(components.dtype)


def added_biases(
    kind: str,
    norm: Norm | None,
    b: Float[Array, "l d"] | None,
    config: Config,
    activations: Mapping[str, Array],
    layers: int,
    t: int,
) -> list[Float[Array, "..."]]:
    """Return what each layer's bias, and the bias of the norm after the layer, add to the stream."""
    biases = []
    if b is not None and norm is None:
        biases.append(b[:layers])
    elif b is not None:
        each = jnp.broadcast_to(b[:layers, None, None], (layers, 1, t, b.shape[-1]))
        biases.append(added(kind, norm, config, activations, each)[:, 0])
    if norm is not None and norm.b is not None:
        biases.append(norm.b[:layers])
    return biases
