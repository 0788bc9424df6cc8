"""A run's fixed parts and its randomness: what loop, evaluation and report share."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from rich.console import Console

from jaxformer.config import Config
from jaxformer.model.params import Params, init
from train.data.batches import Batch
from train.data.dataset import ALL, Data, Rows
from train.devices.layout import Layout
from train.metrics import Listener
from train.optimizer import make_optimizer
from train.recipe import Recipe
from train.step import StepOptions, TrainState


class Run(NamedTuple):
    """What stays the same from the first step of a run to the last."""

    recipe: Recipe
    config: Config
    data: Data
    folder: Path
    console: Console
    keep: int = 1
    """number of latest checkpoints to keep, besides the best one"""
    listeners: tuple[Listener, ...] = ()
    """they receive each line of the metrics too"""
    first: Params | None = None
    """parameters to start from, whose buffers are donated to the training; None: fresh ones"""
    layout: Layout = Layout()
    """the mesh, and the rules that shard arrays over it"""

    @property
    def step_options(self) -> StepOptions:
        """How its steps are computed."""
        return step_options(self.recipe)


def step_options(recipe: Recipe) -> StepOptions:
    """How a Recipe's steps are computed."""
    return StepOptions(
        compute=recipe.compute, accumulate=recipe.accumulate, vocab_chunk=recipe.vocab_chunk
    )


class Keys(NamedTuple):
    """The randomness of one member: its first parameters, its batches, its samples."""

    init: Any
    batches: Any
    samples: Any


def keys(seed: int) -> Keys:
    """Return the keys of a seed; a member of an ensemble has the same keys as a single run with its seed."""
    return Keys(*jax.random.split(jax.random.key(seed), 3))


def seeds(recipe: Recipe) -> range:
    """Return the seeds of the members."""
    return range(recipe.seed, recipe.seed + recipe.seeds)


def fresh_state(
    recipe: Recipe, config: Config, first: Params | None = None, layout: Layout = Layout()
) -> TrainState:
    """Return the state before the first step; every member starts from `first`, or from fresh parameters."""
    if layout.mesh is None:
        return _start(recipe, config, first)
    like = state_shapes(recipe, config, layout)
    where = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(partial(_start, recipe, config), out_shardings=where)(first)


def state_shapes(recipe: Recipe, config: Config, layout: Layout = Layout()) -> TrainState:
    """Return the shapes and shardings of a state; nothing is allocated."""
    shapes = jax.eval_shape(partial(_start, recipe, config, None))
    if layout.mesh is None:
        first = SingleDeviceSharding(jax.local_devices()[0])
        where = jax.tree.map(lambda _: first, shapes)
    else:
        where = layout.state(config, shapes)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        where,
    )


def _start(recipe: Recipe, config: Config, first: Params | None) -> TrainState:
    optimizer = make_optimizer(config, recipe.optimizer, recipe.steps)

    def start(key: Any) -> TrainState:
        params: Any = init(config, key) if first is None else first
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    if recipe.seeds == 1:
        return start(keys(recipe.seed).init)
    return jax.vmap(start)(jnp.stack([keys(seed).init for seed in seeds(recipe)]))


def batch_shapes(recipe: Recipe, layout: Layout, steps: int = 1) -> Batch:
    """Return the shapes and shardings of the batches of some steps, `[n b ...]`; for an ensemble `[n member b ...]`."""
    members = (recipe.seeds,) if recipe.seeds > 1 else ()
    where = layout.placed(None, *[None] * len(members), layout.batch)
    shape = (steps, *members, recipe.batch)
    return Batch(
        jax.ShapeDtypeStruct((*shape, recipe.context + 1), jnp.int32, sharding=where),
        jax.ShapeDtypeStruct((*shape, recipe.context), bool, sharding=where),
    )


def draw(run: Run, steps: np.ndarray) -> Batch:
    """Return the batches of some steps, shaped as in `batch_shapes`. On a mesh each process draws only its own rows."""

    def rows(some: Rows) -> Batch:
        each = [run.data.draw(keys(seed).batches, steps, some) for seed in seeds(run.recipe)]
        return each[0] if len(each) == 1 else jax.tree.map(lambda *x: np.stack(x, axis=1), *each)

    if run.layout.mesh is None:
        return rows(ALL)
    whole, batch = batch_shapes(run.recipe, run.layout, len(steps)), run.recipe.batch
    axis = whole.windows.ndim - 2
    places = whole.windows.sharding.addressable_devices_indices_map(whole.windows.shape).values()
    own = np.unique([np.arange(batch)[index[axis]] for index in places])

    def put(shape: jax.ShapeDtypeStruct, drawn: Any) -> Any:
        def part(index: Any) -> Any:
            return drawn[..., np.searchsorted(own, np.arange(batch)[index[axis]]), :]

        return jax.make_array_from_callback(shape.shape, shape.sharding, part)

    return jax.tree.map(put, whole, rows(own))


def member(params: Params, index: int, members: int) -> Params:
    """One model of an ensemble; the model itself where there is but one."""
    return params if members == 1 else jax.tree.map(lambda x: x[index], params)
