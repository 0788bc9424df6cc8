"""The last layer of a sweep, computed only at the positions whose logits are read."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxformer.config import Compute, Config
from jaxformer.model.cache import LayerCache
from jaxformer.model.params import Block
from jaxformer.model.stream import take_positions
from jaxformer.model.tap import Tap
from jaxformer.model.transformer import block
from jaxformer.sites import EditFunction, Layer, position_axis


def block_at(
    params: Block,
    config: Config,
    state: Float[Array, "t d"],
    read: Int[Array, " r"],
    edit: EditFunction,
    layer: Layer,
    compute: Compute,
) -> Float[Array, "r d"]:
    """Return the stream after a block at some positions. Only their queries and their MLP are computed.

    The block runs twice: at all positions, where only the keys and values are used, so that the compiler drops
    everything else; then at the positions wanted, with those keys and values.
    """
    positions = jnp.arange(len(state), dtype=jnp.int32)
    keys = _AllPositions()
    options: Any = {"layer": layer, "cache": keys, "compute": compute}
    block(params, config, state, positions, tap=Tap((), edit, layer), **options)
    narrow = Tap((), _at_positions(edit, read, len(state)), layer)
    return block(
        params, config, take_positions(state, read), positions[read], tap=narrow, **options
    )


class _AllPositions(LayerCache):
    """The keys and values of the first call, which every later call gets too."""

    def __init__(self) -> None:
        self.first: Any = None

    def extend(self, k: Any, v: Any, positions: Any) -> Any:
        self.first = self.first or (k, v, positions)
        return self.first


def _at_positions(edit: EditFunction, read: Int[Array, " r"], length: int) -> EditFunction:
    """Return the edit for values at some positions: it is given zeros at the others.

    This is right for an edit that changes each position by itself.
    """

    def narrow(site: str, layer: Layer, value: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        axis = position_axis(site)
        rows = jnp.moveaxis(value, axis, 0)
        zeros = jnp.zeros((length, *rows.shape[1:]), value.dtype)
        full = jnp.moveaxis(zeros.at[read].set(rows), 0, axis)
        edited = edit(site, layer, full)
        if edited is full:
            return value
        return jnp.take(edited, read, axis, mode="fill")

    return narrow
