"""Fit a sweep into a memory budget: how many cells run as one batch, and into how many chunks the sweep is cut."""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.interp.engine.passes import Runs, Sweep
from jaxformer.model.params import Params, abstract

MAX_ENTRY_LAYERS = 6
"""The most layers at which cells enter. More would save more work, but compile longer."""


class MemoryPlan(NamedTuple):
    """The number of cells to run as one batch, and the number of chunks."""

    cell_batch: int
    chunks: int


def plan_memory(
    sweep: Sweep, params: Params, runs: Runs, cells: int, shards: int, memory: int
) -> MemoryPlan:
    """Plan a sweep: half of the memory that the two runs leave is for streams, half for the values inside a layer.

    Raises:
        ValueError: too little memory for one cell.
    """
    (batch, length), config = runs.corrupted.shape, sweep.config
    logits_at = None if runs.logits_at is None else len(runs.logits_at)
    # The metric is replaced so that the cache does not depend on it: it does not change the shapes.
    recorded = _recorded_shapes(
        replace(sweep, metric=max), params.W_E.dtype, batch, length, logits_at
    )
    heads = (4 * config.n_heads + 4 * config.sizes["k"]) * config.d_head
    attention = heads + 3 * config.n_heads * length
    per_token = 8 * config.d_model + max(attention, (3 + config.gated) * config.d_mlp)
    itemsize = max([4, *(array.dtype.itemsize for array in recorded)])
    layer = batch * length * per_token * itemsize
    each = layer + batch * 2 * (logits_at or length) * config.n_vocab * itemsize
    # Four copies of a stream: by itself, joined to the others, and in and out of a loop.
    stream = 4 * batch * length * config.d_model * itemsize
    # The recorded values take their memory twice: while they are computed, and in the loops that read them. Add the
    # passes that compute them, and the parameters of a layer, which loops copy.
    copied = sum(map(_bytes, jax.tree.leaves(params.blocks))) // max(config.n_layers, 1)
    fixed = 2 * sum(map(_bytes, recorded)) + sweep.recorded_passes * layer + copied
    least = min(MAX_ENTRY_LAYERS, max(config.n_layers, 1)) * stream
    free = memory - fixed
    if free < least + each:
        raise ValueError(
            f"memory={memory} bytes are too few: the values of the two runs take {fixed}, one cell about {each}; "
            f"give at least {fixed + least + each}, or shorter or fewer sequences"
        )
    streams = max(least, min(free // 2, free - each))
    chunks = math.ceil(math.ceil(cells / shards) * stream / streams)
    return MemoryPlan(min((free - streams) // each, cells), chunks)


def _bytes(array: Any) -> int:
    return array.size * array.dtype.itemsize


@lru_cache(maxsize=32)
def _recorded_shapes(
    sweep: Sweep, dtype: Any, batch: int, length: int, logits_at: int | None
) -> list[Any]:
    """Return the shapes and dtypes of what the sweep records."""
    tokens: Any = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    read: Any = None if logits_at is None else jax.ShapeDtypeStruct((logits_at,), jnp.int32)
    runs = Runs(tokens, tokens, read)
    return jax.tree.leaves(jax.eval_shape(sweep.record, abstract(sweep.config, dtype), runs))
