"""The stream taken apart: every layer, head and neuron adds its own part, and the parts sum to the stream.

All here are functions of `activations`, which `forward(..., capture=...)` returned for one sequence;
`jax.vmap` gives them a batch. Components come stacked in front, [c t d], in the order of their labels in
`interp.components`; `interp.lens` reads them as logits. What an edit added to the stream itself is no
component's: there, the parts sum to less than was captured.

Where a norm comes after a layer (`Config.norm_place`), what a head or a neuron adds to the stream is its part of
that norm's output, at the scale that the whole sum had: capture attn_post_scale or mlp_post_scale for it.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
from jaxformer.interp.engine.frozen import added, added_biases, frozen, taken_back
from jaxformer.model.params import Params, stacked
from jaxformer.model.stream import product, wide, widened


def decompose_resid(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    layer: int | None = None,
    *,
    mlp_input: bool = False,
) -> Float[Array, "c t d"]:
    """What each layer before this one wrote, and the embeddings: they sum to the stream that it reads.

    Args:
        activations: with embed, pos_embed where there is one, attn_out, and mlp_out where there are MLPs.
        layer: the stream before its attention; None: the final one.
        mlp_input: the stream before its MLP. In a parallel block that is the stream before its attention.

    Raises:
        ValueError: a layer that is not there, a site that was not captured.

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
    del params
    layer = check_layer(config, layer, mlp_input=mlp_input)
    embeddings = embedding_sites(config)
    values = captured(activations, *embeddings, *writers(config))
    embeds, outs = values[: len(embeddings)], values[len(embeddings) :]
    parts = [jnp.stack(embeds), _in_turn([out[:layer] for out in outs])]
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
) -> Float[Array, "c t d"]:
    """The stream as every layer up to this one finds it: what `logit_lens` reads.

    Args:
        activations: with resid_pre; resid_post for the final stream; resid_mid for the streams between.
        layer: the last one whose input is given; None: all, then the final stream.
        incl_mid: also the stream between attention and MLP of the layers before.
        mlp_input: also that of this layer.

    Raises:
        ValueError: a layer that is not there, a site that was not captured or that this Config lacks.

    >>> import jax, jaxformer
    >>> from jaxformer.interp.lens import logit_lens
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("resid_pre", "resid_post"))
    >>> streams = accumulated_resid(params, config, out.activations)
    >>> bool(jnp.array_equal(logit_lens(params, config, streams)[-1], out.logits))
    True
    """
    del params
    layer = check_layer(config, layer, mlp_input=mlp_input)
    between = attends_first(config, mlp_input=mlp_input)
    check_mid(config, incl_mid=incl_mid)
    sites = ("resid_pre", "resid_mid") if incl_mid else ("resid_pre",)
    # A model without layers has no resid_pre, only the stream that is unembedded.
    before = [value[:layer] for value in captured(activations, *sites)] if layer else []
    parts = [_in_turn(before)] if before else []
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
) -> Float[Array, "c t d"]:
    """What each head of every layer before this one wrote to the stream; [l n t d] is a reshape away.

    Args:
        activations: with z, or with head_out, which then counts; with attn_post_scale if there is one; with the
            stream for the remainder.
        layer: the stream that they wrote to is this layer's input; None: the final one.
        remainder: one more row: what of that stream the heads did not write.

    Raises:
        ValueError: a layer that is not there, a site that was not captured, unstacked parameters.

    >>> import jax, jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("z",))
    >>> head_results(params, config, out.activations).shape
    (4, 3, 8)
    """
    layer = check_layer(config, layer)
    heads = _heads(params, config, activations, layer)
    if not remainder:
        return heads
    rest = stream_at(config, activations, layer) - heads.sum(0)
    return jnp.concatenate([heads, rest[None]])


def neuron_results(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    layer: int | Int[Array, ""],
    *,
    onto: Float[Array, "*r d"] | None = None,
) -> Float[Array, "f t *d"]:
    """What each neuron of one layer's MLP wrote to the stream, or how much of it lies along a direction.

    The neurons and b_out sum to the layer's mlp_out. [f t d] is large; with `onto` it is never formed.

    Args:
        activations: with post, and mlp_post_scale if there is one.
        layer: whose neurons; it may be traced: `jax.vmap` over layers, if all must be held at once.
        onto: a direction [d], or one for each position [t d], as `logit_directions` gives them.

    Raises:
        ValueError: a layer that is not there (a traced one gives NaN), a site not captured, unstacked parameters.

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
        raise ValueError(f"layer={layer} is not there; choose 0 to {config.n_layers - 1}")
    of_layer = partial(_of_layer, layer)
    post = of_layer(captured(activations, "post")[0])
    W_out = of_layer(blocks.mlp.W_out).astype(post.dtype)
    norm: Any = jax.tree.map(of_layer, blocks.mlp_post_norm)
    normed = blocks.mlp_post_norm is not None
    scale = of_layer(captured(activations, "mlp_post_scale")[0]) if normed else post  # or unread
    if onto is None:
        each = jnp.einsum("tf,fd->ftd", post, W_out)
        return frozen(norm, config, each, scale).astype(each.dtype) if normed else each
    if normed:
        onto = taken_back(norm, config, onto, scale)
    written = product("fd,...d->f...", widened(W_out), widened(onto).astype(wide(post.dtype)))
    return widened(post).T * (written if onto.ndim == 2 else written[:, None])


def full_decomposition(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    layer: int | None = None,
    *,
    mlp_input: bool = False,
    neurons: bool = False,
) -> Float[Array, "c t d"]:
    """The stream as heads, then MLPs or neurons, then embeddings, then all biases in one: they sum to it.

    TransformerLens's get_full_resid_decomposition, and its order. An MLP's bias is its mlp_out's own,
    unless the MLP is given as neurons.

    Args:
        activations: with embed, pos_embed where there is one, z or head_out, and mlp_out or post; with
            attn_post_scale, and for neurons mlp_post_scale, if there are any.
        layer: the stream before its attention; None: the final one.
        mlp_input: the stream before its MLP.
        neurons: each neuron for itself. With many layers and positions that is a large array.

    Raises:
        ValueError: a layer that is not there, a site that was not captured, unstacked parameters.

    >>> import jax, jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("embed", "z", "mlp_out"))
    >>> full_decomposition(params, config, out.activations).shape  # L0H0 L0H1 0_mlp_out embed bias
    (5, 3, 8)
    """
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
) -> Float[Array, "c t d"]:
    blocks = stacked(params, config)
    if "head_out" in activations:
        each = captured(activations, "head_out")[0][:layers].swapaxes(1, 2)
    else:
        z = captured(activations, "z")[0][:layers]
        W_O = blocks.attn.W_O[:layers].astype(z.dtype)
        each = product("ltnh,lnhd->lntd", z, W_O).astype(z.dtype)
    return _flat(added("attn", blocks.attn_post_norm, config, activations, each))


def _in_turn(values: list[Array]) -> Float[Array, "c t d"]:
    """Layer by layer, one row of each."""
    stacked = jnp.stack(values, axis=1)
    return _flat(stacked)


def _flat(stacked: Float[Array, "l c t d"]) -> Float[Array, "lc t d"]:
    """One axis of the first two: written out, for -1 does not go with an empty axis."""
    layers, each, *rest = stacked.shape
    return stacked.reshape(layers * each, *rest)


def _of_layer(layer: Any, stack: Float[Array, "l ..."]) -> Float[Array, "..."]:
    """One layer of a stack; NaN for one that is not there, where indexing would take another."""
    return stack.at[layer].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
