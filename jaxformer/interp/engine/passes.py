"""Run the patched passes of a sweep together, layer by layer.

A pass with a change in layer 5 equals the unpatched pass up to that layer. So the passes that change an early layer
start first, the others enter at the layer that they change, and each layer runs once for all passes that have entered,
as one batch.

A cell is one patched pass: a row of integers that says what it changes. A chunk is the cells that run together; chunks
run one after another, to save memory.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.interp.engine.last_layer import block_at
from jaxformer.interp.metric import scalar
from jaxformer.model.params import Block, Params
from jaxformer.model.stream import take_positions
from jaxformer.model.tap import Tap
from jaxformer.model.transformer import block, forward, unembed
from jaxformer.sites import LOGIT_SITES, EditFunction, Layer, identity

CELL_AXIS = "data"
"""The mesh axis that the cells of a sweep are sharded over; the compiler uses the others for the parameters."""


class Runs(NamedTuple):
    """The tokens of the two runs, the positions whose logits the metric gets, and its other arguments."""

    clean: Int[Array, "b t"]
    corrupted: Int[Array, "b t"]
    logits_at: Int[Array, " r"] | None
    metric_args: Any = ((), {})
    """positional and keyword arguments of the metric's function, before the logits"""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep is compiled for. The first integer of a cell is its layer; subclasses define the others."""

    config: Config
    metric: Callable[..., Any]
    """the metric's function"""
    single: bool
    """one sequence, whose logits have no axis b"""
    compute: Compute

    @property
    def recorded_passes(self) -> int:
        """The number of passes that `record` runs side by side."""
        return 2

    def record(self, params: Params, runs: Runs) -> Any:
        """Return what all cells need from the two runs, with the batch in front."""
        raise NotImplementedError

    def start(self, params: Params, recorded: Any, layer: int, cell: Int[Array, " field"]) -> Array:
        """Return the stream [t d] with which a cell enters at a layer; `recorded` is that of one sequence."""
        raise NotImplementedError

    def edit(
        self, recorded: Any, params: Block, layer: Layer, cell: Int[Array, " field"]
    ) -> EditFunction:
        """Return the edit of a cell in the layer with this index and these parameters."""
        raise NotImplementedError

    def last_edit(self, recorded: Any, cell: Int[Array, " field"]) -> EditFunction:
        """Return the edit of a cell after all layers."""
        del recorded, cell
        return identity


def capture(
    sweep: Sweep, params: Params, tokens: Int[Array, "b t"], logits_at: Any, *sites: str
) -> dict[str, Array]:
    """Return a batch's values at some sites, with the batch in front; sites of logits only at logits_at."""
    if logits_at is None and not LOGIT_SITES & set(sites):
        logits_at = jnp.array([-1])  # the logits are not used: unembed only one position

    def forward_one(tokens: Array) -> dict[str, Array]:
        return forward(
            params, sweep.config, tokens, capture=sites, logits_at=logits_at, compute=sweep.compute
        ).activations

    return jax.vmap(forward_one)(tokens)


@partial(jax.jit, static_argnums=0, static_argnames=("entry_layers", "cell_batch", "mesh"))
def run_layers(
    sweep: Sweep,
    params: Params,
    runs: Runs,
    recorded: Any,
    chunks: tuple[Int[Array, "chunk _ field"], ...],
    *,
    entry_layers: tuple[int, ...],
    cell_batch: int,
    mesh: Mesh | None,
) -> Float[Array, "chunk cell"]:
    """Return the metric of every cell, chunk by chunk.

    Args:
        chunks: for each entry layer, the cells of each chunk that enter there. On a mesh they are sharded evenly, and
            the result has the cells of the first shard, of all entry layers, then those of the second, and so on.
        cell_batch: run at most this many cells as one batch.
    """
    dtype = jnp.dtype(sweep.compute.dtype or params.W_E.dtype)
    params = jax.tree.map(lambda array: array.astype(dtype), params)
    run = partial(_run_chunks, sweep, entry_layers, cell_batch)
    if mesh is None:
        return run(params, runs, recorded, list(chunks))
    replicated, sharded = PartitionSpec(), PartitionSpec(None, CELL_AXIS)
    # shard_map, because the compiler alone would gather all streams on every device, and a loop over batches of cells
    # would fetch each batch from all devices.
    values = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(replicated, replicated, replicated, sharded),
        out_specs=sharded,
        axis_names={CELL_AXIS},
        check_vma=False,  # a loop inside the metric may start from a replicated value
    )(params, runs, recorded, list(chunks))
    return jax.lax.with_sharding_constraint(values, NamedSharding(mesh, replicated))


def _run_chunks(
    sweep: Sweep,
    entry_layers: tuple[int, ...],
    cell_batch: int,
    params: Params,
    runs: Runs,
    recorded: Any,
    chunks: list[Int[Array, "chunk _ field"]],
) -> Float[Array, "chunk cell"]:
    run = partial(_Passes(sweep, params, runs, recorded).chunk, entry_layers, cell_batch)
    if len(chunks[0]) == 1:
        return run([group[0] for group in chunks])[None]
    return jax.lax.map(run, chunks)


class _Passes(NamedTuple):
    sweep: Sweep
    params: Params
    runs: Runs
    recorded: Any

    def chunk(
        self, entry_layers: tuple[int, ...], cell_batch: int, entering: list[Int[Array, "_ field"]]
    ) -> Float[Array, " cell"]:
        """Return the metric of the cells of a chunk, given those that enter at each entry layer."""
        each = partial(_map_cells, batch_size=cell_batch)
        # With logits_at, the last layer runs only at those positions, at the end.
        narrow = self.runs.logits_at is not None and entry_layers[-1] < self.sweep.config.n_layers
        last = self.sweep.config.n_layers - narrow
        cells = entering[0][:0]
        states: Any = None
        for entry, new, until in zip(
            entry_layers, entering, (*entry_layers[1:], last), strict=True
        ):
            cells, started = jnp.concatenate([cells, new]), self.start(entry, new)
            states = started if states is None else jnp.concatenate([states, started])

            def body(layer: Array, states: Any, cells: Array = cells) -> Any:
                return each(partial(self.step, layer), cells, states)

            if entry < until:
                states = jax.lax.fori_loop(entry, until, body, states)
        return each(partial(self.end, narrow), cells, states)

    def start(self, layer: int, cells: Int[Array, "cell field"]) -> Float[Array, "cell b t d"]:
        """Return the streams with which cells enter at a layer."""

        def one(cell: Array, recorded: Any) -> Array:
            return self.sweep.start(self.params, recorded, layer, cell)

        by_sequence = jax.vmap(one, in_axes=(None, 0))
        streams = jax.vmap(by_sequence, in_axes=(0, None))(cells, self.recorded)
        return streams.astype(self.params.W_E.dtype)

    def step(
        self, layer: Any, cell: Int[Array, " field"], states: Float[Array, "b t d"], at: Any = None
    ) -> Float[Array, "b r d"]:
        """Return the streams of one cell after a layer; with `at` only at these positions."""
        sweep = self.sweep
        params = jax.tree.map(lambda stack: stack[layer], self.params.blocks)
        layer = jnp.asarray(layer, jnp.int32)

        def one(recorded: Any, state: Array) -> Array:
            edit = sweep.edit(recorded, params, layer, cell)
            if at is not None:
                return block_at(params, sweep.config, state, at, edit, layer, sweep.compute)
            tap = Tap((), edit, layer)
            return block(params, sweep.config, state, layer=layer, tap=tap, compute=sweep.compute)

        return jax.vmap(one)(self.recorded, states)

    def end(
        self, narrow: bool, cell: Int[Array, " field"], states: Float[Array, "b t d"]
    ) -> Float[Array, ""]:
        """Return the metric of one cell; `narrow`: after running the last layer at logits_at only."""
        sweep, logits_at = self.sweep, self.runs.logits_at
        if narrow:
            states = self.step(sweep.config.n_layers - 1, cell, states, logits_at)
        elif logits_at is not None:
            states = jax.vmap(take_positions, in_axes=(0, None))(states, logits_at)

        def one(recorded: Any, state: Array) -> Array:
            tap = Tap((), sweep.last_edit(recorded, cell))
            return unembed(self.params, sweep.config, state, tap=tap)

        logits = jax.vmap(one)(self.recorded, states)
        arguments, keywords = self.runs.metric_args
        metric = partial(sweep.metric, *arguments, **keywords)
        return scalar(metric, logits[0] if sweep.single else logits)


def _map_cells(function: Callable[..., Array], *arrays: Array, batch_size: int) -> Array:
    """Apply a function to every row, at most batch_size rows at a time."""
    if len(arrays[0]) <= batch_size:
        return jax.vmap(function)(*arrays)
    return jax.lax.map(lambda rows: function(*rows), arrays, batch_size=batch_size)
