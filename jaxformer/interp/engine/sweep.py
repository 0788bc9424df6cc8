"""Run a sweep: many patched passes of one model, as one compiled program, within a memory budget."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxformer.checks import check_logits_at, positive_integer
from jaxformer.config import Config
from jaxformer.interp.engine.memory import MAX_ENTRY_LAYERS, plan_memory
from jaxformer.interp.engine.passes import CELL_AXIS, Runs, Sweep, run_layers
from jaxformer.interp.metric import as_tokens, check_alike, split
from jaxformer.model.checks import stacked
from jaxformer.model.params import Params, count
from jaxformer.model.spec import path_name
from jaxformer.sharding import automatic

GIB = 2**30


def check_runs(
    params: Params, config: Config, clean: Any, corrupted: Any, metric: Any, logits_at: Any
) -> tuple[Runs, Callable[..., Any], bool]:
    """Return the two runs as batches, the metric's function, and whether the runs were single sequences.

    Raises:
        ValueError: parameters of another model, or unstacked; tokens that are not integers, of different shapes or
            outside the vocabulary; a metric that is not a function; logits_at out of range.
    """
    stacked(params, config)
    clean, corrupted = as_tokens("clean", clean, config), as_tokens("corrupted", corrupted, config)
    check_alike(clean, corrupted)
    function, *metric_args = split(metric)
    logits_at = None if logits_at is None else check_logits_at(logits_at, clean.shape[-1])
    batches = jnp.atleast_2d(clean), jnp.atleast_2d(corrupted)
    return Runs(*batches, logits_at, tuple(metric_args)), function, clean.ndim == 1


def run(
    sweep: Sweep,
    params: Params,
    runs: Runs,
    cells: Int[np.ndarray, "cells field"],
    shape: tuple[int, ...],
    places: Int[np.ndarray, " cells"],
    *,
    memory: Any,
    progress: bool | None,
    mesh: Any,
) -> Float[Array, "..."]:
    """Return an array of this shape with every cell's metric at its place, and NaN elsewhere.

    Args:
        cells: sorted by layer.
        places: the index of each cell in the flattened result.
        memory: peak memory of each device in bytes, without the parameters.
        progress: show a progress bar; None: if the sweep takes long.
        mesh: shard the cells over its axis "data"; None: use one device.

    Raises:
        ValueError: too little memory, or not a number of bytes; a mesh without an axis "data", or with other devices
            than the arrays.
    """
    mesh, shards = _check_mesh(mesh, params, runs)
    memory = positive_integer("memory", memory)
    plan = plan_memory(sweep, params, runs, len(cells), shards, memory)
    show = _shows_progress(progress, sweep, (params, runs), len(cells), runs.corrupted.size)
    entry_layers, chunks, order = _cut(cells, max(plan.chunks, 16 if show else 1), shards)
    # Padding cells get an index past the end, which the scatter drops.
    places = np.append(places, math.prod(shape)).astype(np.int32)[order]
    static = {"entry_layers": entry_layers, "cell_batch": plan.cell_batch, "mesh": mesh}
    if not show:
        return _run_all(sweep, params, runs, chunks, places, shape=shape, **static)
    recorded, values = _record(sweep, params, runs), []
    with _progress_bar(len(places)) as advance:
        for i in range(len(places)):
            chunk = tuple(group[i : i + 1] for group in chunks)
            value = run_layers(sweep, params, runs, recorded, chunk, **static)
            values.append(jax.block_until_ready(value))
            advance()
    return _scatter(jnp.concatenate(values), places, shape=shape)


def _check_mesh(mesh: Any, params: Params, runs: Runs) -> tuple[Mesh | None, int]:
    """Return the mesh with axes of type Auto, and the number of shards of the cells.

    Raises:
        ValueError: not a mesh, a mesh without an axis for cells, or an array on other devices.
    """
    if mesh is None:
        return None, 1
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"mesh={mesh!r} is not a jax.sharding.Mesh; make one with jax.make_mesh((8,), ({CELL_AXIS!r},))"
        )
    if CELL_AXIS not in mesh.shape:
        axes = ", ".join(mesh.shape) or "no axes"
        raise ValueError(
            f"patches are sharded over a mesh axis {CELL_AXIS!r}, but this mesh has {axes}; rename one of its axes"
        )
    named = {"params": params, **runs._asdict()}
    named["metric"] = named.pop("metric_args")
    for path, array in jax.tree_util.tree_leaves_with_path(named):
        if isinstance(array, jax.core.Tracer) or not getattr(array, "committed", False):
            continue  # JAX checks these, or moves them
        if array.sharding.device_set != set(mesh.devices.flat):
            raise ValueError(
                f"{path_name(path)} is on {_devices(array.sharding.device_set)}, but mesh is on "
                f"{_devices(mesh.devices.flat)}; move it with jax.device_put, or give a mesh of its devices"
            )
    return automatic(mesh), mesh.shape[CELL_AXIS]


def _devices(devices: Any) -> str:
    named = [str(device) for device in sorted(devices, key=lambda device: device.id)]
    return named[0] if len(named) == 1 else f"{len(named)} devices, {named[0]} to {named[-1]}"


def _cut(
    cells: Int[np.ndarray, "cells field"], number: int, shards: int = 1
) -> tuple[
    tuple[int, ...], tuple[Int[np.ndarray, "chunk _ field"], ...], Int[np.ndarray, "chunk cell"]
]:
    """Cut a sweep into chunks of one shape. Returns the entry layers, the chunks, and which cell is where.

    Every chunk has an equal number of the cells that enter at a layer, padded with -1, which is not a layer or an
    index. The order has the index of each cell of a chunk, -1 for padding: the cells of the first shard, of all entry
    layers, come first.

    >>> entry_layers, chunks, order = _cut(np.array([[0, 7], [0, 8], [0, 9], [2, 7]], np.int32), 2)
    >>> entry_layers, [chunk.shape for chunk in chunks], order.tolist()
    ((0, 2), [(2, 2, 2), (2, 1, 2)], [[0, 1, 3], [2, -1, -1]])
    """
    layers = np.unique(cells[:, 0])
    # Each entry layer costs a device at least one cell, so have no more of them than a device has cells.
    most = min(MAX_ENTRY_LAYERS, math.ceil(len(cells) / shards))
    entry_layers = [int(some[0]) for some in np.array_split(layers, min(most, len(layers)))]
    groups = np.split(np.arange(len(cells)), np.searchsorted(cells[:, 0], entry_layers[1:]))
    number = min(number, math.ceil(max(map(len, groups)) / shards))
    order = []
    for group in groups:
        each = math.ceil(len(group) / (number * shards))
        padded = np.full(number * shards * each, -1)
        padded[: len(group)] = group
        order.append(padded.reshape(number, shards, each))
    with_padding = np.concatenate([cells, np.full_like(cells[:1], -1)]).astype(np.int32)
    chunks = tuple(with_padding[indices.reshape(number, -1)] for indices in order)
    return tuple(entry_layers), chunks, np.concatenate(order, axis=2).reshape(number, -1)


@partial(jax.jit, static_argnums=0, static_argnames=("entry_layers", "cell_batch", "shape", "mesh"))
def _run_all(
    sweep: Sweep,
    params: Params,
    runs: Runs,
    chunks: tuple[Array, ...],
    places: Int[Array, "chunk cell"],
    *,
    entry_layers: tuple[int, ...],
    cell_batch: int,
    shape: tuple[int, ...],
    mesh: Mesh | None,
) -> Float[Array, "..."]:
    """Run a sweep as one program: calling several would take a small sweep longer than its work."""
    recorded = _record(sweep, params, runs)
    static: Any = {"entry_layers": entry_layers, "cell_batch": cell_batch, "mesh": mesh}
    values = run_layers(sweep, params, runs, recorded, chunks, **static)
    return _scatter(values, places, shape=shape)


@partial(jax.jit, static_argnums=0)
def _record(sweep: Sweep, params: Params, runs: Runs) -> Any:
    return sweep.record(params, runs)


@partial(jax.jit, static_argnames="shape")
def _scatter(
    values: Float[Array, "chunk cell"], places: Int[Array, "chunk cell"], *, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    empty = jnp.full(math.prod(shape), jnp.nan, values.dtype)
    return empty.at[places].set(values).reshape(shape)


def _shows_progress(
    progress: bool | None, sweep: Sweep, arrays: Any, cells: int, tokens: int
) -> bool:
    """Whether to show a progress bar: as given, or if the sweep takes some seconds; never inside traced code."""
    if any(isinstance(array, jax.core.Tracer) for array in jax.tree.leaves(arrays)):
        return False
    return 2 * count(sweep.config) * cells * tokens > 2e12 if progress is None else progress


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    hidden = not (console.is_terminal or console.is_jupyter)
    with Progress(console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("patching", total=total)
        yield lambda: bar.advance(task)
