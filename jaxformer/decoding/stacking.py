"""Layers as a list instead of stacked arrays."""

from typing import Any, TypeVar

import jax

from jaxformer.model.cache import Cache
from jaxformer.model.params import Params

Unstackable = TypeVar("Unstackable", Params, Cache)


def unstack(stacked: Unstackable) -> Unstackable:
    """Return the Params, or the Cache, with a list of layers in place of stacked arrays.

    `forward` then runs the layers one by one instead of in a loop. That compiles longer, but runs faster for a few
    tokens at a time: on CPU, the loop copies each layer's weights before it reads them.

    >>> import jaxformer
    >>> config = jaxformer.Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> unstack(jaxformer.init(config, jax.random.key(0))).blocks[1].attn.W_Q.shape
    (8, 2, 4)
    """
    if isinstance(stacked, Cache):
        return stacked._replace(k=layers(stacked.k), v=layers(stacked.v))
    return stacked._replace(blocks=layers(stacked.blocks))


def layers(stacked: Any) -> Any:
    """Return stacked arrays as a list of layers; a list, or a model without layers, unchanged."""
    number = len(jax.tree.leaves(stacked)[0])
    if isinstance(stacked, list) or not number:
        return stacked
    return [jax.tree.map(lambda array: array[layer], stacked) for layer in range(number)]  # noqa: B023
