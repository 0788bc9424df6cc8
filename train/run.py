"""A run's fixed parts and its randomness: what loop, evaluation and outcome share."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxformer.config import Config
from jaxformer.params import Params, init
from train.batches import Batch
from train.data import Data
from train.metrics import Listener
from train.optimizer import make_optimizer
from train.recipe import Recipe
from train.step import TrainState


class Run(NamedTuple):
    """What stays the same from the first step of a run to the last."""

    recipe: Recipe
    config: Config
    data: Data
    folder: Path
    console: Console
    keep: int = 1
    """last checkpoints to keep, besides the best"""
    listeners: tuple[Listener, ...] = ()
    """other readers of the metrics while it lasts"""
    first: Params | None = None
    """parameters to start from, whose buffers the training takes for its own; None: fresh ones"""


class Keys(NamedTuple):
    """The randomness of one member: its first parameters, its batches, its samples."""

    init: Any
    batches: Any
    samples: Any


def keys(seed: int) -> Keys:
    """All that follows from a seed; a member of an ensemble has the keys of the run with its seed."""
    return Keys(*jax.random.split(jax.random.key(seed), 3))


def seeds(recipe: Recipe) -> range:
    """Of the members."""
    return range(recipe.seed, recipe.seed + recipe.seeds)


def fresh_state(recipe: Recipe, config: Config, first: Params | None = None) -> TrainState:
    """The state before the first step: with these parameters in every member, or each with fresh ones."""
    optimizer = make_optimizer(config, recipe.optimizer, recipe.steps)

    def start(key: Any) -> TrainState:
        params: Any = init(config, key) if first is None else first
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    if recipe.seeds == 1:
        return start(keys(recipe.seed).init)
    return jax.vmap(start)(jnp.stack([keys(seed).init for seed in seeds(recipe)]))


def draw(run: Run, steps: np.ndarray) -> Batch:
    """The batches of some steps; of an ensemble `[n member b ...]`."""
    each = [run.data.draw(keys(seed).batches, steps) for seed in seeds(run.recipe)]
    return each[0] if len(each) == 1 else jax.tree.map(lambda *x: np.stack(x, axis=1), *each)


def member(params: Params, index: int, members: int) -> Params:
    """One model of an ensemble; the model itself where there is but one."""
    return params if members == 1 else jax.tree.map(lambda x: x[index], params)
