"""Rewrite the parameters of a model in simpler form; each fold keeps the logits, or only the log-probabilities.

The weights of a head or neuron show what it reads and writes most clearly without norm weights, without biases that
could be part of another bias, and without directions that no layer reads. Every fold is a pure function
`(params, config) -> params` that works under jit, vmap and grad.

Call `foldable` first: it adds every array that a fold may need.

    params, config = foldable(params, config)
    for fold in (fold_norm, center_writing, center_unembed, fold_value_bias, refactor_qk_ov):
        params = fold(params, config)

A fold keeps what the model computes, but not what an edit does: zeroing a pattern, for example, also removes the value
biases, unless they were folded.

Source: names and meanings are those of TransformerLens, ProcessWeights.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.interp.refactor import refactor_ov, refactor_qk, refactor_qk_ov, with_attention
from jaxformer.model.checks import stacked
from jaxformer.model.norm import norm_gain
from jaxformer.model.params import Norm, Params, abstract

__all__ = [
    "center_unembed",
    "center_writing",
    "fold_norm",
    "fold_value_bias",
    "foldable",
    "refactor_ov",
    "refactor_qk",
    "refactor_qk_ov",
]


def foldable(params: Params, config: Config) -> tuple[Params, Config]:
    """Return an equivalent model with an untied unembedding and all biases; those that it lacked are zeros.

    Raises:
        ValueError: parameters of another Config, or unstacked.

    >>> import jaxformer
    >>> tied = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, tied=True)
    >>> params, config = foldable(jaxformer.init(tied, jax.random.key(0)), tied)
    >>> config.tied, config.bias, params.W_U.shape
    (False, 'all', (8, 5))
    """
    stacked(params, config)
    W_U = params.W_E.T if params.W_U is None else params.W_U
    given = dict(jax.tree_util.tree_leaves_with_path(params._replace(W_U=W_U)))
    config = dataclasses.replace(config, tied=False, bias="all", unembed_bias=True)

    def filled(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> Array:
        return given[path] if path in given else jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(filled, abstract(config, params.W_E.dtype)), config


def fold_norm(params: Params, config: Config) -> Params:
    """Move the weights and biases of norms into the matrices that read through them: the same logits.

    Norm weights become 1 (0 with norm_plus_one) and norm biases 0. A norm after a layer keeps its weights, because no
    matrix reads its output alone. With LayerNorm, the matrices also lose their component along (1, ..., 1), which the
    centred input does not have.

    Raises:
        ValueError: no norm; a tied unembedding; norm biases without another bias to move them to.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, norm="rms")
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> params = params._replace(final_norm=params.final_norm._replace(w=jnp.full(8, 3.0)))
    >>> float(fold_norm(params, config).final_norm.w[0])
    1.0
    """
    blocks, final = stacked(params, config), params.final_norm
    if final is None:
        raise ValueError('norm="none" has no norm to fold')
    _check_untied(config, "the final norm's weight must go into the unembedding alone")
    if final.b is not None and params.b_U is None:
        raise ValueError(f"unembed_bias=False has no bias to add the final norm's to; {_REPAIR}")
    fold = partial(_fold_into, config)
    each, attn, mlp = jax.vmap(fold), blocks.attn, blocks.mlp
    if blocks.attn_norm is not None:
        _check_bias(config, blocks.attn_norm, "qkv")
        W_Q, b_Q = each(blocks.attn_norm, attn.W_Q, attn.b_Q)
        W_K, b_K = each(blocks.attn_norm, attn.W_K, attn.b_K)
        W_V, b_V = each(blocks.attn_norm, attn.W_V, attn.b_V)
        attn = attn._replace(W_Q=W_Q, W_K=W_K, W_V=W_V, b_Q=b_Q, b_K=b_K, b_V=b_V)
    if mlp is not None and blocks.mlp_norm is not None:
        _check_bias(config, blocks.mlp_norm, "mlp")
        W_in, b_in = each(blocks.mlp_norm, mlp.W_in, mlp.b_in)
        W_gate, b_gate = each(blocks.mlp_norm, mlp.W_gate, mlp.b_gate)
        mlp = mlp._replace(W_in=W_in, b_in=b_in, W_gate=W_gate, b_gate=b_gate)
    W_U, b_U = fold(final, params.W_U, params.b_U)
    norms = (blocks.attn_norm, blocks.mlp_norm, final)
    attn_norm, mlp_norm, final = (_without_weights(norm, config) for norm in norms)
    blocks = blocks._replace(attn_norm=attn_norm, attn=attn, mlp_norm=mlp_norm, mlp=mlp)
    return params._replace(blocks=blocks, final_norm=final, W_U=W_U, b_U=b_U)


def _fold_into(
    config: Config, norm: Norm, W: Float[Array, "..."] | None, b: Float[Array, "..."] | None
) -> tuple[Any, Any]:
    """Return the matrix and bias of one layer with the weights and bias of the norm folded in."""
    if W is None:
        return None, None
    if b is not None and norm.b is not None:
        b = b + jnp.einsum("d,d...->...", norm.b, W)
    W = jnp.einsum("d,d...->d...", norm_gain(norm.w, config), W)
    return (W - W.mean(axis=0) if config.norm == "layer" else W), b


def _check_bias(config: Config, norm: Norm, part: str) -> None:
    if norm.b is not None and not config.has_bias(part):
        raise ValueError(
            f'bias="{config.bias}" has norm biases but no {part} biases to move them to; {_REPAIR}'
        )


def center_writing(params: Params, config: Config) -> Params:
    """Subtract from all weights that write to the stream their mean over its coordinates: the same logits.

    Every layer reads the stream through a LayerNorm, which removes that mean. Sinusoidal positions are not parameters
    and keep their mean, which changes nothing either.

    Raises:
        ValueError: a norm other than LayerNorm, which depends on the mean; a norm after layers, whose output has a mean
            of its own; a tied embedding, because the unembedding would change too.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, norm="layer")
    >>> params = center_writing(jaxformer.init(config, jax.random.key(0)), config)
    >>> bool(jnp.abs(params.W_E.mean(axis=-1)).max() < 1e-6)
    True
    """
    blocks = stacked(params, config)
    if config.norm != "layer":
        raise ValueError(
            f'norm="{config.norm}" does not remove the mean; center_writing needs norm="layer"'
        )
    if config.norm_place != "before":
        raise ValueError(
            f'norm_place="{config.norm_place}" has norms that write to the stream, whose output cannot be centred; '
            'center_writing needs norm_place="before"'
        )
    _check_untied(config, "centring the embedding would change the unembedding")
    attn, mlp = blocks.attn, blocks.mlp
    attn = attn._replace(W_O=_centred(attn.W_O), b_O=_centred(attn.b_O))
    if mlp is not None:
        mlp = mlp._replace(W_out=_centred(mlp.W_out), b_out=_centred(mlp.b_out))
    return params._replace(
        W_E=_centred(params.W_E),
        W_pos=_centred(params.W_pos),
        blocks=blocks._replace(attn=attn, mlp=mlp),
    )


def center_unembed(params: Params, config: Config) -> Params:
    """Subtract from the unembedding its mean over the vocabulary: the same log-probabilities.

    A number added to all logits changes no probability, but hides how a component favours one token over another.

    Raises:
        ValueError: a logit_soft_cap, which such a number does change; a tied unembedding, because the embedding would
            change too.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = center_unembed(jaxformer.init(config, jax.random.key(0)), config)
    >>> bool(jnp.abs(params.W_U.mean(axis=-1)).max() < 1e-6)
    True
    """
    stacked(params, config)
    if config.logit_soft_cap is not None:
        raise ValueError(
            f"logit_soft_cap={config.logit_soft_cap} is not linear, so the mean of the logits matters; "
            "center_unembed needs logit_soft_cap=None"
        )
    _check_untied(config, "centring the unembedding would change the embedding")
    return params._replace(W_U=_centred(params.W_U), b_U=_centred(params.b_U))


def fold_value_bias(params: Params, config: Config) -> Params:
    """Move what value biases write into b_O: the same logits.

    The rows of a pattern sum to 1, so a head adds its value bias to every average, and W_O writes the same vector at
    every position.

    Raises:
        ValueError: no value bias, or no output bias to move it to.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, bias="all")
    >>> params = fold_value_bias(jaxformer.init(config, jax.random.key(0)), config)
    >>> bool(params.blocks.attn.b_V.any())
    False
    """
    attn = stacked(params, config).attn
    if attn.b_V is None or attn.b_O is None:
        lacks = (
            "no value biases to fold" if attn.b_V is None else "no output bias to fold them into"
        )
        raise ValueError(f'bias="{config.bias}" has {lacks}; {_REPAIR}')
    layers, heads, width, d_model = attn.W_O.shape
    kv_heads = attn.b_V.shape[1]
    W_O = attn.W_O.reshape(layers, kv_heads, heads // kv_heads, width, d_model)
    written = jnp.einsum("lkh,lkghd->ld", attn.b_V, W_O)
    return with_attention(
        params, attn._replace(b_V=jnp.zeros_like(attn.b_V), b_O=attn.b_O + written)
    )


_REPAIR = "first call params, config = foldable(params, config)"


def _check_untied(config: Config, why: str) -> None:
    if config.tied:
        raise ValueError(f"tied=True is one array for both embeddings, and {why}; {_REPAIR}")


def _without_weights(norm: Norm | None, config: Config) -> Norm | None:
    """Return a norm that only divides: its weights are 1 and its biases 0."""
    if norm is None:
        return None
    w = jnp.full_like(norm.w, 0.0 if config.norm_plus_one else 1.0)
    return Norm(w, None if norm.b is None else jnp.zeros_like(norm.b))


def _centred(array: Float[Array, "..."] | None) -> Float[Array, "..."] | None:
    """Subtract the mean over the last axis."""
    return None if array is None else array - array.mean(axis=-1, keepdims=True)
