"""The parameters of a model: their tree, their declarations and their initial values."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxformer.config import Config
from jaxformer.model.spec import constant, draw, is_spec, matrix, mlp_gain, table, write_gain


class Norm(NamedTuple):
    """Weight and bias of a norm."""

    w: Float[Array, "*l d"]
    b: Float[Array, "*l d"] | None


class Attention(NamedTuple):
    """The four linear functions of every head."""

    W_Q: Float[Array, "*l d n h"]
    W_K: Float[Array, "*l d k h"]
    W_V: Float[Array, "*l d k h"]
    W_O: Float[Array, "*l n h d"]
    b_Q: Float[Array, "*l n h"] | None
    b_K: Float[Array, "*l k h"] | None
    b_V: Float[Array, "*l k h"] | None
    b_O: Float[Array, "*l d"] | None
    norm_Q: Float[Array, "*l h"] | Float[Array, "*l n h"] | None = None
    norm_K: Float[Array, "*l h"] | Float[Array, "*l k h"] | None = None


class MLP(NamedTuple):
    """The neurons: neuron f reads the direction W_in[:, f] and writes the direction W_out[f]."""

    W_in: Float[Array, "*l d f"]
    W_gate: Float[Array, "*l d f"] | None
    W_out: Float[Array, "*l f d"]
    b_in: Float[Array, "*l f"] | None
    b_gate: Float[Array, "*l f"] | None
    b_out: Float[Array, "*l d"] | None


class Block(NamedTuple):
    """The parameters of one residual block; or of all of them, stacked, with a leading axis `l` on every array."""

    attn_norm: Norm | None
    attn: Attention
    mlp_norm: Norm | None
    mlp: MLP | None
    attn_post_norm: Norm | None = None  # on what attention writes
    mlp_post_norm: Norm | None = None


class Params(NamedTuple):
    """A model's parameters. An array that the model does not have is None: the tree is the architecture.

    The blocks are stacked; `unstack` turns them into a list of Blocks, which `forward` takes as well.
    """

    W_E: Float[Array, "v d"]
    W_pos: Float[Array, "c d"] | None
    blocks: Block
    final_norm: Norm | None
    W_U: Float[Array, "d v"] | None
    b_U: Float[Array, " v"] | None


@lru_cache
def specs(config: Config) -> Params:
    """Return Params with the `Spec` of each array in its place.

    A tied embedding is drawn as a matrix that reads the stream. A norm after a layer has the weight `write_gain`.
    """
    share, mlp = write_gain(config), config.d_mlp > 0
    before, after = config.has_norm("before"), config.has_norm("after")
    embedding_std = config.d_model**-0.5 if config.tied else 1 / config.embedding_scale
    position_std = config.d_model**-0.5 if config.tied else 1.0
    return Params(
        W_E=table(config, "v d", embedding_std),
        W_pos=table(config, "c d", position_std) if config.position == "learned" else None,
        blocks=Block(
            attn_norm=_norm(config, "l d") if before else None,
            attn=_attention(config),
            mlp_norm=_norm(config, "l d") if before and mlp else None,
            mlp=_mlp(config) if mlp else None,
            attn_post_norm=_norm(config, "l d", share) if after else None,
            mlp_post_norm=_norm(config, "l d", share) if after and mlp else None,
        ),
        final_norm=_norm(config, "d") if config.norm != "none" else None,
        W_U=None if config.tied else matrix(config, "d v", reads="d"),
        b_U=constant(config, "v", 0.0) if config.unembed_bias else None,
    )


def _attention(config: Config) -> Attention:
    """Declare all attention layers.

    A query and a key of variance 1 have a dot product of standard deviation √d_head, which the usual scale brings to 1.
    With another attention_scale, a gain of Q and K (or of their norms) keeps the initial variance of the scores at 1.
    """
    share = (config.d_head**0.5 * config.score_scale) ** -0.5
    bias: Any = lambda part, axes: constant(config, axes, 0.0) if config.has_bias(part) else None  # noqa: E731
    weight: Any = lambda axes: constant(config, axes, share - config.norm_plus_one)  # noqa: E731
    norms = {"none": (None, None), "head": ("l h", "l h"), "all": ("l n h", "l k h")}
    norm_Q, norm_K = (axes and weight(axes) for axes in norms[config.qk_norm])
    return Attention(
        W_Q=matrix(config, "l d n h", reads="d", gain=share), b_Q=bias("qkv", "l n h"), norm_Q=norm_Q,
        W_K=matrix(config, "l d k h", reads="d", gain=share), b_K=bias("qkv", "l k h"), norm_K=norm_K,
        W_V=matrix(config, "l d k h", reads="d"), b_V=bias("qkv", "l k h"),
        W_O=matrix(config, "l n h d", reads="n h", gain=write_gain(config)), b_O=bias("o", "l d"),
    )  # fmt: skip


def _norm(config: Config, axes: str, gain: float = 1.0) -> Norm:
    biased = config.has_bias("norm") and config.norm == "layer"
    w = constant(config, axes, gain - config.norm_plus_one)
    return Norm(w, constant(config, axes, 0.0) if biased else None)


def _mlp(config: Config) -> MLP:
    bias: Any = lambda axes: constant(config, axes, 0.0) if config.has_bias("mlp") else None  # noqa: E731
    gate = matrix(config, "l d f", reads="d") if config.gated else None
    return MLP(
        W_in=matrix(config, "l d f", reads="d"), b_in=bias("l f"),
        W_gate=gate, b_gate=gate and bias("l f"),
        W_out=matrix(config, "l f d", reads="f", gain=mlp_gain(config)), b_out=bias("l d"),
    )  # fmt: skip


def init(
    config: Config, key: Key[Array, ""] | Int[Array, ""] | int, dtype: Any = jnp.float32
) -> Params:
    """Draw initial parameters, by the variance-preserving rule of `jaxformer.model.spec`; an integer key is a seed.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> init(config, 0).blocks.attn.W_Q.shape
    (2, 8, 2, 4)
    """
    if not isinstance(config, Config):
        raise ValueError(f"config is a {type(config).__name__}; the order is config, key")
    given: Any = key
    seed = jnp.issubdtype(getattr(key, "dtype", jnp.int32), jnp.integer) and not jnp.ndim(given)
    return draw(specs(config), jax.random.key(given) if seed else given, dtype)


def abstract(config: Config, dtype: Any = jnp.float32) -> Params:
    """Return the parameters as `jax.ShapeDtypeStruct`s; nothing is allocated."""
    as_shape = lambda spec: jax.ShapeDtypeStruct(spec.shape, dtype)  # noqa: E731
    return jax.tree.map(as_shape, specs(config), is_leaf=is_spec)


def count(config: Config) -> int:
    """Return the number of parameters."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(specs(config), is_leaf=is_spec))
