"""The parameters of a model: their tree, their declarations, their first values, and what they must be."""

from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxformer import spec
from jaxformer.attention import Attention, attention_spec
from jaxformer.cache import Cache
from jaxformer.config import Config
from jaxformer.mlp import MLP, mlp_spec
from jaxformer.norm import Norm, norm_spec
from jaxformer.position import position_spec


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
    share, mlp = spec.write_gain(config), config.d_mlp > 0
    return Params(
        W_E=spec.table(config, "v d", embedding_std),
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
        W_U=None if config.tied else spec.matrix(config, "d v", reads="d"),
        b_U=spec.constant(config, "v", 0.0) if config.unembed_bias else None,
    )


def init(config: Config, key: Key[Array, ""], dtype: Any = jnp.float32) -> Params:
    """Fresh parameters, by the variance-preserving rule of `jaxformer.spec`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> init(config, jax.random.key(0)).blocks.attn.W_Q.shape
    (2, 8, 2, 4)
    """
    return spec.draw(specs(config), key, dtype)


def abstract(config: Config, dtype: Any = jnp.float32) -> Params:
    """The parameters' shapes and dtypes, with nothing allocated."""
    return spec.shapes(specs(config), dtype)


@lru_cache
def count(config: Config) -> int:
    """The number of parameters.

    >>> count(Config(n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512, n_vocab=65))
    803072
    """
    return spec.size(specs(config))


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
                f"this Config has {spec.path_name(path)} of shape {leaf.shape}, the parameters have {shape}; "
                "both must come from one model"
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{spec.path_name(path)} is {leaf.dtype}; parameters are floats")
    if given:
        raise ValueError(
            f"the parameters have {spec.path_name(next(iter(given)))}, this Config does not"
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
