"""The parameters of a model: their tree, their declarations, their first values, and what they must be."""

from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxformer.config import Config
from jaxformer.model.cache import Cache
from jaxformer.model.spec import (
    Stand,
    constant,
    draw,
    matrix,
    mlp_gain,
    path_name,
    shapes,
    size,
    table,
    write_gain,
)


class Norm(NamedTuple):
    """Weight and bias per coordinate of the normed state; with a leading `l` where layers are stacked."""

    w: Float[Array, "*l d"]
    b: Float[Array, "*l d"] | None


class Attention(NamedTuple):
    """The four linear functions of every head; with a leading `l` where layers are stacked."""

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
    """Neuron f reads `W_in[:, f]` and writes `W_out[f]`; with a leading `l` where layers are stacked."""

    W_in: Float[Array, "*l d f"]
    W_gate: Float[Array, "*l d f"] | None
    W_out: Float[Array, "*l f d"]
    b_in: Float[Array, "*l f"] | None
    b_gate: Float[Array, "*l f"] | None
    b_out: Float[Array, "*l d"] | None


class Block(NamedTuple):
    """The parameters of all residual blocks, stacked; of one, where a function says so."""

    attn_norm: Norm | None
    attn: Attention
    mlp_norm: Norm | None
    mlp: MLP | None
    attn_post_norm: Norm | None = None  # on what attention writes
    mlp_post_norm: Norm | None = None


class Params(NamedTuple):
    """A model's parameters. An array that the model does not have is None: the tree is the architecture.

    `unstack` makes of `blocks` a list with a Block per layer, which `forward` takes as well.
    """

    W_E: Float[Array, "v d"]
    W_pos: Float[Array, "c d"] | None
    blocks: Block
    final_norm: Norm | None
    W_U: Float[Array, "d v"] | None
    b_U: Float[Array, " v"] | None


Unstackable = TypeVar("Unstackable", Params, Cache)


def specs(config: Config) -> Params:
    """The declaration of every parameter: Params with a `Spec` in the place of each array.

    A tied embedding is also a reader, and drawn as one. A norm on what a layer writes begins with the share that
    the layer has in the stream.
    """
    embedding_std = config.d_model**-0.5 if config.tied else 1 / config.embedding_scale
    position_std = config.d_model**-0.5 if config.tied else 1.0
    share, mlp = write_gain(config), config.d_mlp > 0
    return Params(
        W_E=table(config, "v d", embedding_std),
        W_pos=position_spec(config, position_std),
        blocks=Block(
            attn_norm=norm_spec(config, "l d", "before"),
            attn=attention_spec(config),
            mlp_norm=norm_spec(config, "l d", "before") if mlp else None,
            mlp=mlp_spec(config),
            attn_post_norm=norm_spec(config, "l d", "after", share),
            mlp_post_norm=norm_spec(config, "l d", "after", share) if mlp else None,
        ),
        final_norm=norm_spec(config, "d"),
        W_U=None if config.tied else matrix(config, "d v", reads="d"),
        b_U=constant(config, "v", 0.0) if config.unembed_bias else None,
    )


def attention_spec(config: Config) -> Attention:
    """The Specs of all attention layers.

    A query·key of unit vectors has standard deviation √d_head; the scale brings that to 1. Where
    attention_scale is another, Q and K (or their norms) share the rest, so that scores begin with variance 1.
    """
    share = (config.d_head**0.5 * config.score_scale) ** -0.5
    qkv, of_sum = config.has_bias("qkv"), config.has_bias("o")
    norm_Q, norm_K = (
        constant(config, axes, share - config.norm_plus_one) if axes else None
        for axes in QK_NORM_AXES[config.qk_norm]
    )
    return Attention(
        W_Q=matrix(config, "l d n h", reads="d", gain=share),
        W_K=matrix(config, "l d k h", reads="d", gain=share),
        W_V=matrix(config, "l d k h", reads="d"),
        W_O=matrix(config, "l n h d", reads="n h", gain=write_gain(config)),
        b_Q=constant(config, "l n h", 0.0) if qkv else None,
        b_K=constant(config, "l k h", 0.0) if qkv else None,
        b_V=constant(config, "l k h", 0.0) if qkv else None,
        b_O=constant(config, "l d", 0.0) if of_sum else None,
        norm_Q=norm_Q,
        norm_K=norm_K,
    )


QK_NORM_AXES = {"none": ("", ""), "head": ("l h", "l h"), "all": ("l n h", "l k h")}
"""Of the weights of the norms on queries and on keys."""


def position_spec(config: Config, std: float) -> Stand:
    """The Spec of the position table, or None where positions are not learned."""
    return table(config, "c d", std) if config.position == "learned" else None


def norm_spec(
    config: Config, axes: str, place: str | None = None, gain: float = 1.0
) -> Norm | None:
    """The Specs of one norm, which multiplies by `gain` at first; None where the Config has none at this place.

    Without a place it is the final one, which every model with norms has.
    """
    if config.norm == "none" or not (place is None or config.norms(place)):
        return None
    biased = config.has_bias("norm") and config.norm == "layer"
    w = constant(config, axes, gain - config.norm_plus_one)
    return Norm(w, constant(config, axes, 0.0) if biased else None)


def mlp_spec(config: Config) -> MLP | None:
    """The Specs of all MLP layers, or None in an attention-only model."""
    if not config.d_mlp:
        return None
    biased = config.has_bias("mlp")
    return MLP(
        W_in=matrix(config, "l d f", reads="d"),
        W_gate=matrix(config, "l d f", reads="d") if config.gated else None,
        W_out=matrix(config, "l f d", reads="f", gain=mlp_gain(config)),
        b_in=constant(config, "l f", 0.0) if biased else None,
        b_gate=constant(config, "l f", 0.0) if biased and config.gated else None,
        b_out=constant(config, "l d", 0.0) if biased else None,
    )


def init(config: Config, key: Key[Array, ""], dtype: Any = jnp.float32) -> Params:
    """Fresh parameters, by the variance-preserving rule of `jaxformer.model.spec`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> init(config, jax.random.key(0)).blocks.attn.W_Q.shape
    (2, 8, 2, 4)
    """
    return draw(specs(config), key, dtype)


def abstract(config: Config, dtype: Any = jnp.float32) -> Params:
    """The parameters' shapes and dtypes, with nothing allocated."""
    return shapes(specs(config), dtype)


@lru_cache
def count(config: Config) -> int:
    """The number of parameters.

    >>> count(Config(n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512, n_vocab=65))
    803072
    """
    return size(specs(config))


def unstack(stacked: Unstackable) -> Unstackable:
    """The same Params, or the same Cache, with an array per layer in place of stacks: lists along the layers.

    `forward` takes both so, and then runs its layers one by one in place of a loop over slices of arrays.
    That compiles longer, the more so the deeper the model, and suits a program that runs a few tokens at a
    time: on CPU, the loop copies each layer's weights before it reads them.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> unstack(init(config, jax.random.key(0))).blocks[1].attn.W_Q.shape
    (8, 2, 4)
    """
    if isinstance(stacked, Cache):
        k, v = (part if isinstance(part, list) else layers(part) for part in stacked[:2])
        return stacked._replace(k=k, v=v)
    blocks: Any = stacked.blocks
    return stacked if isinstance(blocks, list) else stacked._replace(blocks=layers(blocks))


def layers(stacked: Any) -> Any:
    """A tree of arrays with a leading layer axis, as a list of trees without it.

    Without layers it stays as it is: an empty list would not say what its layers hold.
    """
    number = len(jax.tree.leaves(stacked)[0])
    if not number:
        return stacked
    return [jax.tree.map(itemgetter(layer), stacked) for layer in range(number)]


def check_params(params: Params, config: Config) -> None:
    """Refuse parameters that are not those of this Config.

    Raises:
        ValueError: naming the first array that is missing, superfluous, of another shape or no float.
    """
    expected = _expected(config, unstacked=isinstance(params.blocks, list))
    given = dict(jax.tree_util.tree_leaves_with_path(params))
    for path, leaf in expected:
        shape = jnp.shape(given.pop(path)) if path in given else None
        if shape != leaf.shape:
            raise ValueError(
                f"this Config has {path_name(path)} of shape {leaf.shape}, the parameters have {shape}; "
                "both must come from one model"
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{path_name(path)} is {leaf.dtype}; parameters are floats")
    if given:
        raise ValueError(
            f"the parameters have {path_name(next(iter(given)))}, this Config does not"
        )


def stacked(params: Params, config: Config) -> Block:
    """The blocks, stacked over layers, of parameters that are this Config's.

    Raises:
        ValueError: as `check_params`; layers in a list, as `unstack` gives them.
    """
    check_params(params, config)
    if isinstance(params.blocks, list):
        raise ValueError("the layers are listed; give them stacked, as init does")
    return params.blocks


@lru_cache
def _expected(config: Config, *, unstacked: bool) -> list[tuple[Any, Any]]:
    shapes = abstract(config)
    shapes = jax.eval_shape(unstack, shapes) if unstacked else shapes
    return jax.tree_util.tree_leaves_with_path(shapes)
