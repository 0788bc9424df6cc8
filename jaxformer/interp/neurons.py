"""What single neurons write to the residual stream."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import Config
from jaxformer.interp.components import captured
from jaxformer.interp.engine.linear_norm import frozen, pulled_back
from jaxformer.model.checks import stacked
from jaxformer.model.params import Params
from jaxformer.model.stream import accumulation_dtype, einsum_f32, upcast


def neuron_results(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    layer: int | Int[Array, ""],
    *,
    onto: Float[Array, "*r d"] | None = None,
) -> Float[Array, "f t *d"]:
    """Return what each neuron of one layer's MLP wrote to the stream, or its projection onto a direction.

    The neurons and b_out sum to the layer's mlp_out. [f t d] is large; with `onto` it is never formed.

    Args:
        activations: with post, and with mlp_post_scale if the model has it.
        layer: may be traced: `jax.vmap` over it gives several layers at once.
        onto: a direction [d], or one for each position [t d], as `logit_directions` returns them.

    Raises:
        ValueError: a layer out of range (NaN if it is traced), a site that was not captured, unstacked parameters.

    >>> import jax, jaxformer
    >>> from jaxformer.interp.lens import logit_directions
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("post",))
    >>> towards = logit_directions(params, config, out.activations, 2)
    >>> neuron_results(params, config, out.activations, 1, onto=towards).shape
    (32, 3)
    """
    blocks = stacked(params, config)
    if blocks.mlp is None:
        raise ValueError("d_mlp=0: this Config has no neurons")
    if not isinstance(layer, jax.core.Tracer) and not 0 <= layer < config.n_layers:
        raise ValueError(f"layer={layer} is out of range; choose 0 to {config.n_layers - 1}")
    of_layer = partial(_of_layer, layer)
    post = of_layer(captured(activations, "post")[0])
    W_out = of_layer(blocks.mlp.W_out).astype(post.dtype)
    norm: Any = jax.tree.map(of_layer, blocks.mlp_post_norm)
    normed = blocks.mlp_post_norm is not None
    scale = of_layer(captured(activations, "mlp_post_scale")[0]) if normed else post
    if onto is None:
        each = jnp.einsum("tf,fd->ftd", post, W_out)
        return frozen(norm, config, each, scale).astype(each.dtype) if normed else each
    if normed:
        onto = pulled_back(norm, config, onto, scale)
    written = einsum_f32(
        "fd,...d->f...", upcast(W_out), upcast(onto).astype(accumulation_dtype(post.dtype))
    )
    return upcast(post).T * (written if onto.ndim == 2 else written[:, None])


def _of_layer(layer: Any, stack: Float[Array, "l ..."]) -> Float[Array, "..."]:
    """Take one layer of a stack; NaN for a layer out of range, where indexing would clamp it."""
    return stack.at[layer].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
