"""A sweep, door to result: many changed passes of one model, as one compiled program, within a budget of memory."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxformer.checks import positive_integer
from jaxformer.config import Config
from jaxformer.interp.engine.climb import SHARED_ALONG, Runs, Sweep, climb
from jaxformer.interp.metric import as_tokens, check_alike, split
from jaxformer.model.checks import check_read
from jaxformer.model.params import Params, abstract, count, stacked
from jaxformer.model.spec import path_name
from jaxformer.sharding import automatic

GIB = 2**30
LANDINGS = 6
"""The most layers at which passes join. More would leave out more work, and compile longer."""


def check_door(
    params: Params, config: Config, clean: Any, corrupted: Any, metric: Any, read: Any
) -> tuple[Runs, Callable[..., Any], bool]:
    """The two runs, as batches; the metric's function; and whether they were single sequences.

    Raises:
        ValueError: parameters of another model, or unstacked; tokens that are no integers, of different shapes, or
            outside the vocabulary; a metric that is no function; a place to read at that is not there.
    """
    stacked(params, config)
    clean, corrupted = as_tokens("clean", clean, config), as_tokens("corrupted", corrupted, config)
    check_alike(clean, corrupted)
    function, *given = split(metric)
    read = None if read is None else check_read(read, clean.shape[-1])
    runs = Runs(jnp.atleast_2d(clean), jnp.atleast_2d(corrupted), read, tuple(given))
    return runs, function, clean.ndim == 1


def run(
    sweep: Sweep,
    params: Params,
    runs: Runs,
    cells: Int[np.ndarray, "cells k"],
    shape: tuple[int, ...],
    places: Int[np.ndarray, " cells"],
    *,
    memory: Any,
    progress: bool | None,
    mesh: Any,
) -> Float[Array, "..."]:
    """Every cell's metric, at its place in a flattened array of this shape; NaN at others.

    Args:
        sweep: what to do.
        runs: the two texts.
        cells: in the order of their layers.
        shape: of the result.
        places: of the cells in it.
        memory: the most bytes that a device is to hold at once, the parameters not counted.
        progress: show a bar; None: if it will take long.
        mesh: whose devices share the cells; None: all on one.

    Raises:
        ValueError: too little memory, or what is no number of bytes; a mesh that has no axis for cells, or other
            devices than the arrays.
    """
    mesh, parts = _mesh(mesh, params, runs)
    room = _room(sweep, params, runs, len(cells), parts, positive_integer("memory", memory))
    shown = _shows_progress(progress, sweep, (params, runs), len(cells), runs.corrupted.size)
    landings, columns, order = _columns(cells, max(room.columns, 16 if shown else 1), parts)
    where = np.append(places, math.prod(shape)).astype(np.int32)[order]  # a filler's is out of it
    static = {"landings": landings, "at_once": room.at_once, "mesh": mesh}
    if not shown:
        return _whole(sweep, params, runs, columns, where, shape=shape, **static)
    held, done = _record(sweep, params, runs), []
    with _bar(len(where)) as advance:
        for i in range(len(where)):
            column = tuple(group[i : i + 1] for group in columns)
            values = climb(sweep, params, runs, held, column, **static)
            done.append(jax.block_until_ready(values))
            advance()
    return _placed(jnp.concatenate(done), where, shape=shape)


class Room(NamedTuple):
    """What a budget of memory allows: cells side by side in a layer, and the parts to cut the sweep into."""

    at_once: int
    columns: int


def _room(sweep: Sweep, params: Params, runs: Runs, cells: int, parts: int, memory: int) -> Room:
    """Half of what the runs leave is for streams, half for what a layer makes of them.

    Raises:
        ValueError: one cell is too much.
    """
    (batch, length), config = runs.corrupted.shape, sweep.config
    read = None if runs.read is None else len(runs.read)
    # Which metric it is makes no difference here.
    held = _held(replace(sweep, metric=max), params.W_E.dtype, batch, length, read)
    heads = (4 * config.n_heads + 4 * config.sizes["k"]) * config.d_head
    attention = heads + 3 * config.n_heads * length
    per_token = 8 * config.d_model + max(attention, (3 + config.gated) * config.d_mlp)
    itemsize = max([4, *(array.dtype.itemsize for array in held)])
    layer = batch * length * per_token * itemsize
    each = layer + batch * 2 * (read or length) * config.n_vocab * itemsize
    # A stream as it is, joined to others, and in and out of a loop.
    stream = 4 * batch * length * config.d_model * itemsize
    # What is held, once while it is made and once more as loops read it; the passes that make it; and a layer's
    # parameters, which loops copy.
    copied = sum(map(_bytes, jax.tree.leaves(params.blocks))) // max(config.n_layers, 1)
    fixed = 2 * sum(map(_bytes, held)) + sweep.recording * layer + copied
    least = min(LANDINGS, max(config.n_layers, 1)) * stream
    free = memory - fixed
    if free < least + each:
        raise ValueError(
            f"memory={memory} bytes are too few: what the two runs hold takes {fixed}, one cell about {each}; "
            f"give at least {fixed + least + each}, or shorter or fewer sequences"
        )
    streams = max(least, min(free // 2, free - each))
    columns = math.ceil(math.ceil(cells / parts) * stream / streams)
    return Room(min((free - streams) // each, cells), columns)


def _bytes(array: Any) -> int:
    return array.size * array.dtype.itemsize


@lru_cache(maxsize=32)
def _held(sweep: Sweep, dtype: Any, batch: int, length: int, read: int | None) -> list[Any]:
    """The arrays that the two runs leave, without the arrays."""
    tokens: Any = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    places: Any = None if read is None else jax.ShapeDtypeStruct((read,), jnp.int32)
    runs = Runs(tokens, tokens, places)
    return jax.tree.leaves(
        jax.eval_shape(partial(_record, sweep), abstract(sweep.config, dtype), runs)
    )


def _mesh(mesh: Any, params: Params, runs: Runs) -> tuple[Mesh | None, int]:
    """The mesh, its axes left to the compiler, and into how many parts it cuts the cells.

    Raises:
        ValueError: no mesh; one without an axis for cells; an array that lies on other devices.
    """
    if mesh is None:
        return None, 1
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"mesh={mesh!r} is no jax.sharding.Mesh; make one by jax.make_mesh((8,), ({SHARED_ALONG!r},))"
        )
    if SHARED_ALONG not in mesh.shape:
        has = ", ".join(mesh.shape) or "no axes"
        raise ValueError(
            f"patches are spread along a mesh axis {SHARED_ALONG!r}, and this mesh has {has}; name one of them so"
        )
    named = {"params": params, **runs._asdict()}
    named["metric"] = named.pop("given")
    for path, array in jax.tree_util.tree_leaves_with_path(named):
        if isinstance(array, jax.core.Tracer) or not getattr(array, "committed", False):
            continue  # for JAX to look at, or to move
        if array.sharding.device_set != set(mesh.devices.flat):
            raise ValueError(
                f"{path_name(path)} lies on {_devices(array.sharding.device_set)}, and mesh is of "
                f"{_devices(mesh.devices.flat)}; move it by jax.device_put, or give a mesh of its devices"
            )
    return automatic(mesh), mesh.shape[SHARED_ALONG]


def _devices(devices: Any) -> str:
    named = [str(device) for device in sorted(devices, key=lambda device: device.id)]
    return named[0] if len(named) == 1 else f"{len(named)} devices, {named[0]} to {named[-1]}"


def _columns(
    cells: Int[np.ndarray, "cells k"], number: int, parts: int = 1
) -> tuple[tuple[int, ...], tuple[Int[np.ndarray, "m _ k"], ...], Int[np.ndarray, "m c"]]:
    """The layers at which cells join, the sweep cut into columns, and which cell is where in these.

    Columns are alike: each has an equal share of the cells that join at a layer, filled up with cells of numbers -1,
    which are no layer or place; in the order of all, they are -1 as well. Each share of a column is of so many equal
    parts; in the order, the first parts of a column's shares come first.

    >>> landings, columns, order = _columns(np.array([[0, 7], [0, 8], [0, 9], [2, 7]], np.int32), 2)
    >>> landings, [column.shape for column in columns], order.tolist()
    ((0, 2), [(2, 2, 2), (2, 1, 2)], [[0, 1, 3], [2, -1, -1]])
    """
    layers = np.unique(cells[:, 0])
    # No more landings than a device has cells: each costs it one at least.
    most = min(LANDINGS, math.ceil(len(cells) / parts))
    landings = [int(some[0]) for some in np.array_split(layers, min(most, len(layers)))]
    shares = np.split(np.arange(len(cells)), np.searchsorted(cells[:, 0], landings[1:]))
    number = min(number, math.ceil(max(map(len, shares)) / parts))
    order = []
    for share in shares:
        each = math.ceil(len(share) / (number * parts))
        filled = np.full(number * parts * each, -1)
        filled[: len(share)] = share
        order.append(filled.reshape(number, parts, each))
    numbered = np.concatenate([cells, np.full_like(cells[:1], -1)]).astype(np.int32)
    columns = tuple(numbered[own.reshape(number, -1)] for own in order)
    return tuple(landings), columns, np.concatenate(order, axis=2).reshape(number, -1)


@partial(jax.jit, static_argnums=0, static_argnames=("landings", "at_once", "shape", "mesh"))
def _whole(
    sweep: Sweep,
    params: Params,
    runs: Runs,
    columns: tuple[Array, ...],
    where: Int[Array, "m c"],
    *,
    landings: tuple[int, ...],
    at_once: int,
    shape: tuple[int, ...],
    mesh: Mesh | None,
) -> Float[Array, "..."]:
    """All of a sweep in one program: a small one takes little more time than it takes to call one."""
    held = _record(sweep, params, runs)
    static: Any = {"landings": landings, "at_once": at_once, "mesh": mesh}
    values = climb(sweep, params, runs, held, columns, **static)
    return _placed(values, where, shape=shape)


@partial(jax.jit, static_argnums=0)
def _record(sweep: Sweep, params: Params, runs: Runs) -> Any:
    return sweep.record(params, runs)


@partial(jax.jit, static_argnames="shape")
def _placed(
    values: Float[Array, "m c"], where: Int[Array, "m c"], *, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    return jnp.full(math.prod(shape), jnp.nan, values.dtype).at[where].set(values).reshape(shape)


def _shows_progress(
    progress: bool | None, sweep: Sweep, arrays: Any, cells: int, tokens: int
) -> bool:
    """Whether to show a bar: where asked, or where it takes some seconds; never inside traced code."""
    if any(isinstance(array, jax.core.Tracer) for array in jax.tree.leaves(arrays)):
        return False
    return 2 * count(sweep.config) * cells * tokens > 2e12 if progress is None else progress


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    hidden = not (console.is_terminal or console.is_jupyter)
    with Progress(console=console, transient=True, disable=hidden) as shown:
        task = shown.add_task("patching", total=total)
        yield lambda: shown.advance(task)
