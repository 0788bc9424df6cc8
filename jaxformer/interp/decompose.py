"""Decompose the residual stream into what each layer, head and neuron wrote; these components sum to the stream.

Every function takes the `activations` that `forward(..., capture=...)` returned for one sequence; use `jax.vmap` for a
batch. Components are stacked in front, [component t d], in the order of their labels in `interp.components`;
`interp.lens` maps them to logits. An edit of the stream itself belongs to no component, so the components then do not
sum to the captured stream.

With a norm after a layer (`Config.norm_place`), a head or neuron adds its part of the norm's output, computed with the
scale of the layer's sum: capture attn_post_scale or mlp_post_scale as well.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.interp.components import (
    attends_first,
    captured,
    check_layer,
    check_mid,
    embedding_sites,
    stream_at,
    writers,
)
from jaxformer.interp.engine.linear_norm import added, added_biases
from jaxformer.interp.neurons import neuron_results
from jaxformer.model.checks import check_params, stacked
from jaxformer.model.params import Params
from jaxformer.model.stream import einsum_f32

__all__ = [
    "accumulated_resid",
    "decompose_resid",
    "full_decomposition",
    "head_results",
    "neuron_results",
]


def decompose_resid(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    layer: int | None = None,
    *,
    mlp_input: bool = False,
) -> Float[Array, "component t d"]:
    """Return the embeddings and what each layer before this one wrote; they sum to the stream that it reads.

    Args:
        activations: with embed and attn_out, and with pos_embed and mlp_out if the model has them.
        layer: decompose the input of this layer's attention; None: the final stream.
        mlp_input: decompose the input of its MLP instead; in a parallel block the two are the same.

    Raises:
        ValueError: a layer out of range, a site that was not captured.

    >>> import jax, jaxformer
    >>> from jaxformer.interp.components import component_labels
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]),
    ...                         capture=("embed", "attn_out", "mlp_out", "resid_pre"))
    >>> parts = decompose_resid(params, config, out.activations, 1)
    >>> dict(zip(component_labels(config, 1), parts)).keys()
    dict_keys(['embed', '0_attn_out', '0_mlp_out'])
    >>> bool(jnp.allclose(parts.sum(0), out.activations["resid_pre"][1], atol=1e-5))
    True
    """
    check_params(params, config)
    layer = check_layer(config, layer, mlp_input=mlp_input)
    embeddings = embedding_sites(config)
    values = captured(activations, *embeddings, *writers(config))
    embeds, outs = values[: len(embeddings)], values[len(embeddings) :]
    parts = [jnp.stack(embeds), _interleave([out[:layer] for out in outs])]
    if attends_first(config, mlp_input=mlp_input):
        parts.append(outs[0][layer : layer + 1])
    return jnp.concatenate(parts)


def accumulated_resid(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    layer: int | None = None,
    *,
    incl_mid: bool = False,
    mlp_input: bool = False,
) -> Float[Array, "component t d"]:
    """Return the input of every layer up to this one, for `logit_lens`.

    Args:
        activations: with resid_pre, with resid_post for the final stream, and with resid_mid for MLP inputs.
        layer: the last layer whose input to return; None: all layers, then the final stream.
        incl_mid: include the stream between attention and MLP of the earlier layers.
        mlp_input: include that of this layer.

    Raises:
        ValueError: a layer out of range, a site that was not captured or that this Config lacks.

    >>> import jax, jaxformer
    >>> from jaxformer.interp.lens import logit_lens
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("resid_pre", "resid_post"))
    >>> streams = accumulated_resid(params, config, out.activations)
    >>> bool(jnp.array_equal(logit_lens(params, config, streams)[-1], out.logits))
    True
    """
    check_params(params, config)
    layer = check_layer(config, layer, mlp_input=mlp_input)
    between = attends_first(config, mlp_input=mlp_input)
    check_mid(config, incl_mid=incl_mid)
    sites = ("resid_pre", "resid_mid") if incl_mid else ("resid_pre",)
    # A model without layers has no resid_pre, only the stream that is unembedded.
    before = [value[:layer] for value in captured(activations, *sites)] if layer else []
    parts = [_interleave(before)] if before else []
    parts.append(stream_at(config, activations, layer)[None])
    if between:
        parts.append(stream_at(config, activations, layer, mlp_input=True)[None])
    return jnp.concatenate(parts)


def head_results(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    layer: int | None = None,
    *,
    remainder: bool = False,
) -> Float[Array, "component t d"]:
    """Return what each head of every layer before this one wrote to the stream, [layer·head t d].

    Args:
        activations: with head_out (used if present) or z; with attn_post_scale if the model has it; with the stream
            at this layer for the remainder.
        layer: heads of the layers before this one; None: of all layers.
        remainder: append the rest of the stream, which the heads did not write.

    Raises:
        ValueError: a layer out of range, a site that was not captured, unstacked parameters.

    >>> import jax, jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("z",))
    >>> head_results(params, config, out.activations).shape
    (4, 3, 8)
    """
    check_params(params, config)
    layer = check_layer(config, layer)
    heads = _heads(params, config, activations, layer)
    if not remainder:
        return heads
    rest = stream_at(config, activations, layer) - heads.sum(0)
    return jnp.concatenate([heads, rest[None]])


def full_decomposition(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    layer: int | None = None,
    *,
    mlp_input: bool = False,
    neurons: bool = False,
) -> Float[Array, "component t d"]:
    """Return the stream as heads, then MLPs or neurons, then embeddings, then the sum of all biases.

    The order is that of TransformerLens's get_full_resid_decomposition. The bias of an MLP is part of its mlp_out; with
    neurons=True it is part of the last row.

    Args:
        activations: with embed, with z or head_out, with mlp_out (or post for neurons), and with pos_embed,
            attn_post_scale and, for neurons, mlp_post_scale if the model has them.
        layer: as in `decompose_resid`.
        mlp_input: as in `decompose_resid`.
        neurons: one row per neuron instead of one per MLP: a large array.

    Raises:
        ValueError: a layer out of range, a site that was not captured, unstacked parameters.

    >>> import jax, jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("embed", "z", "mlp_out"))
    >>> full_decomposition(params, config, out.activations).shape  # L0H0 L0H1 0_mlp_out embed bias
    (5, 3, 8)
    """
    check_params(params, config)
    layer = check_layer(config, layer, mlp_input=mlp_input)
    attended = layer + attends_first(config, mlp_input=mlp_input)
    embeds = jnp.stack(captured(activations, *embedding_sites(config)))
    blocks, t = stacked(params, config), embeds.shape[1]
    attn, mlp = blocks.attn, blocks.mlp
    parts, bias = [_heads(params, config, activations, attended)], jnp.zeros_like(embeds[0])
    biases = [("attn", blocks.attn_post_norm, attn.b_O, attended)]
    if mlp is not None and neurons:
        post = captured(activations, "post")[0][:layer]
        each = jnp.einsum("ltf,lfd->lftd", post, mlp.W_out[:layer].astype(post.dtype))
        parts.append(_flat(added("mlp", blocks.mlp_post_norm, config, activations, each)))
        biases.append(("mlp", blocks.mlp_post_norm, mlp.b_out, layer))
    elif mlp is not None:
        parts.append(captured(activations, "mlp_out")[0][:layer])
    for kind, norm, b, layers in biases:
        for own in added_biases(kind, norm, b, config, activations, layers, t):
            bias = bias + own.sum(0).astype(bias.dtype)
    return jnp.concatenate([*parts, embeds, bias[None]])


def _heads(
    params: Params, config: Config, activations: Mapping[str, Array], layers: int
) -> Float[Array, "component t d"]:
    blocks = stacked(params, config)
    if "head_out" in activations:
        each = captured(activations, "head_out")[0][:layers].swapaxes(1, 2)
    else:
        z = captured(activations, "z")[0][:layers]
        W_O = blocks.attn.W_O[:layers].astype(z.dtype)
        each = einsum_f32("ltnh,lnhd->lntd", z, W_O).astype(z.dtype)
    return _flat(added("attn", blocks.attn_post_norm, config, activations, each))


def _interleave(values: list[Array]) -> Float[Array, "component t d"]:
    """Put the rows of several arrays in the order of their layers."""
    return _flat(jnp.stack(values, axis=1))


def _flat(stacked: Float[Array, "l component t d"]) -> Float[Array, "components t d"]:
    """Join the first two axes. A size of -1 would not work for an empty axis."""
    layers, components, *rest = stacked.shape
    return stacked.reshape(layers * components, *rest)
