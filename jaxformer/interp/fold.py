"""The same model in clearer weights: each fold keeps the logits, or the log-probabilities, and says which.

What a head or neuron reads, and what it writes, is easiest to see where nothing stands between it and the
stream: no norm weights, no bias that another could hold as well, no direction that no layer can see. All are
pure functions, `(params, config) -> params`, that work under jit, vmap and grad.

`foldable` comes first: it gives a model every array that a fold may need to write to.

    config, params = foldable(params, config)
    for fold in (fold_norm, center_writing, center_unembed, fold_value_bias, refactor_qk_ov):
        params = fold(params, config)

A fold keeps what the model computes, not what an edit does to it: to take a pattern away, for example, also
takes away a value bias, unless it was folded.

Source: TransformerLens, ProcessWeights, whose names and meaning these have.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.interp.refactor import refactor_ov, refactor_qk, refactor_qk_ov, with_attention
from jaxformer.model.norm import norm_gain
from jaxformer.model.params import Norm, Params, abstract, stacked

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


def foldable(params: Params, config: Config) -> tuple[Config, Params]:
    """The same function of tokens, with an unembedding of its own and every bias: zeros where it had none.

    Raises:
        ValueError: parameters of another Config, or unstacked ones.

    >>> import jaxformer
    >>> tied = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, tied=True)
    >>> config, params = foldable(jaxformer.init(tied, jax.random.key(0)), tied)
    >>> config.tied, config.bias, params.W_U.shape
    (False, 'all', (8, 5))
    """
    stacked(params, config)
    own = params.W_E.T if params.W_U is None else params.W_U
    given = dict(jax.tree_util.tree_leaves_with_path(params._replace(W_U=own)))
    config = dataclasses.replace(config, tied=False, bias="all", unembed_bias=True)

    def filled(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> Array:
        return given[path] if path in given else jnp.zeros(leaf.shape, leaf.dtype)

    return config, jax.tree_util.tree_map_with_path(filled, abstract(config, params.W_E.dtype))


def fold_norm(params: Params, config: Config) -> Params:
    """The norms' weights and biases moved into what reads through them, so that a norm only divides: the same logits.

    Weights become 1 (with norm_plus_one 0, which says the same) and biases 0. A norm on what a layer writes keeps
    its own: nothing reads through it alone. Where the norm is a layer norm, a matrix that reads through it also loses
    its part along (1, ..., 1): what it reads is centred and has nothing there.

    Raises:
        ValueError: no norm; a tied unembedding; norms with biases, and no bias for them to go to.

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
    _check_untied(config, "the final norm's weight goes into the unembedding alone")
    if final.b is not None and params.b_U is None:
        raise ValueError(f"unembed_bias=False has no room for the final norm's bias; {_REPAIR}")
    read = partial(_reading_plainly, config)
    each, attn, mlp = jax.vmap(read), blocks.attn, blocks.mlp
    if blocks.attn_norm is not None:
        _check_room(config, blocks.attn_norm, "qkv")
        W_Q, b_Q = each(blocks.attn_norm, attn.W_Q, attn.b_Q)
        W_K, b_K = each(blocks.attn_norm, attn.W_K, attn.b_K)
        W_V, b_V = each(blocks.attn_norm, attn.W_V, attn.b_V)
        attn = attn._replace(W_Q=W_Q, W_K=W_K, W_V=W_V, b_Q=b_Q, b_K=b_K, b_V=b_V)
    if mlp is not None and blocks.mlp_norm is not None:
        _check_room(config, blocks.mlp_norm, "mlp")
        W_in, b_in = each(blocks.mlp_norm, mlp.W_in, mlp.b_in)
        W_gate, b_gate = each(blocks.mlp_norm, mlp.W_gate, mlp.b_gate)
        mlp = mlp._replace(W_in=W_in, b_in=b_in, W_gate=W_gate, b_gate=b_gate)
    W_U, b_U = read(final, params.W_U, params.b_U)
    norms = (blocks.attn_norm, blocks.mlp_norm, final)
    attn_norm, mlp_norm, final = (_plain(norm, config) for norm in norms)
    blocks = blocks._replace(attn_norm=attn_norm, attn=attn, mlp_norm=mlp_norm, mlp=mlp)
    return params._replace(blocks=blocks, final_norm=final, W_U=W_U, b_U=b_U)


def _reading_plainly(
    config: Config, norm: Norm, W: Float[Array, "..."] | None, b: Float[Array, "..."] | None
) -> tuple[Any, Any]:
    """One layer's matrix and bias that read as these do, through a norm that only divides."""
    if W is None:
        return None, None
    if b is not None and norm.b is not None:
        b = b + jnp.einsum("d,d...->...", norm.b, W)
    W = jnp.einsum("d,d...->d...", norm_gain(norm.w, config), W)
    return (W - W.mean(axis=0) if config.norm == "layer" else W), b


def _check_room(config: Config, norm: Norm, part: str) -> None:
    if norm.b is not None and not config.has_bias(part):
        raise ValueError(
            f'bias="{config.bias}" has norms with biases and no {part} biases for them to go to; {_REPAIR}'
        )


def center_writing(params: Params, config: Config) -> Params:
    """Everything that writes to the stream, less its mean over the stream's coordinates: the same logits.

    Every layer reads such a stream through a layer norm, which takes that mean away: nobody can see it. What
    sinusoidal positions write is no parameter and keeps its mean, on which nothing depends either.

    Raises:
        ValueError: another norm, which would see the mean, or one after layers, which makes a mean anew; a tied
            embedding, which would unembed otherwise.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, norm="layer")
    >>> params = center_writing(jaxformer.init(config, jax.random.key(0)), config)
    >>> bool(jnp.abs(params.W_E.mean(axis=-1)).max() < 1e-6)
    True
    """
    blocks = stacked(params, config)
    if config.norm != "layer":
        raise ValueError(
            f'norm="{config.norm}" sees the mean of the stream; center_writing needs norm="layer"'
        )
    if config.norm_place != "before":
        raise ValueError(
            f'norm_place="{config.norm_place}" lets norms write, whose mean no weights can take away; '
            'center_writing needs norm_place="before"'
        )
    _check_untied(config, "an embedding that is centred would unembed otherwise")
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
    """The unembedding less its mean over the vocabulary: the same log-probabilities.

    What is added to all logits alike changes no probability, and hides what a part of the model says about
    one entry and not another.

    Raises:
        ValueError: a logit_cap, to which what all logits share is not nothing; a tied unembedding, which would
            embed otherwise.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = center_unembed(jaxformer.init(config, jax.random.key(0)), config)
    >>> bool(jnp.abs(params.W_U.mean(axis=-1)).max() < 1e-6)
    True
    """
    stacked(params, config)
    if config.logit_cap is not None:
        raise ValueError(
            f"logit_cap={config.logit_cap} bends what is added to all logits alike; leave the unembedding as it is"
        )
    _check_untied(config, "an unembedding that is centred would embed otherwise")
    return params._replace(W_U=_centred(params.W_U), b_U=_centred(params.b_U))


def fold_value_bias(params: Params, config: Config) -> Params:
    """What value biases write, moved into b_O: the same logits.

    A pattern's rows sum to 1, with or without a window, so a head adds its value bias to every average
    unchanged, and its W_O writes the same at every position.

    Raises:
        ValueError: no value bias, or no output bias to take it.

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
    layers, heads, width, model = attn.W_O.shape
    keys = attn.b_V.shape[1]
    W_O = attn.W_O.reshape(layers, keys, heads // keys, width, model)
    written = jnp.einsum("lkh,lkghd->ld", attn.b_V, W_O)
    return with_attention(
        params, attn._replace(b_V=jnp.zeros_like(attn.b_V), b_O=attn.b_O + written)
    )


_REPAIR = "first: config, params = foldable(params, config)"


def _check_untied(config: Config, why: str) -> None:
    if config.tied:
        raise ValueError(f"tied=True shares one array, and {why}; {_REPAIR}")


def _plain(norm: Norm | None, config: Config) -> Norm | None:
    """A norm that only divides."""
    if norm is None:
        return None
    w = jnp.full_like(norm.w, 0.0 if config.norm_plus_one else 1.0)
    return Norm(w, None if norm.b is None else jnp.zeros_like(norm.b))


def _centred(array: Float[Array, "..."] | None) -> Float[Array, "..."] | None:
    """Less its mean over the last axis."""
    return None if array is None else array - array.mean(axis=-1, keepdims=True)
