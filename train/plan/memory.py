"""Compile one training step for virtual devices, and read off the memory and FLOPs of one device."""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

import jax

from jaxformer.config import Config
from train.compiled import many_steps
from train.devices.layout import Layout
from train.optimizer import make_optimizer
from train.plan.flops import program_flops, train_flops
from train.recipe import Recipe
from train.run import batch_shapes, state_shapes, step_options


class Plan(NamedTuple):
    """The memory and the work of one device in a training step."""

    parameters: int
    """in bytes, as all fields without another unit"""
    optimizer: int
    batch: int
    temporaries: int
    """what XLA allocates besides inputs and outputs"""
    collectives: dict[str, int]
    """number of each kind of collective in the text of the program; the body of a loop counts once"""
    flops: float
    """FLOPs of matrix products, with recomputation; assumes equal work on all devices"""
    model_flops: float
    """FLOPs of one forward and one backward pass, by the formula of the model's sizes"""

    @property
    def memory(self) -> int:
        """The peak memory: all parts together."""
        return self.state + self.batch + self.temporaries

    @property
    def state(self) -> int:
        """The bytes of a checkpoint."""
        return self.parameters + self.optimizer

    @property
    def traffic(self) -> int:
        """A lower bound of the bytes read and written: the update reads and writes the state once."""
        return 2 * self.state


def plan(recipe: Recipe, config: Config, layout: Layout) -> Plan:
    """Compile one training step for a mesh, without allocating arrays.

    Raises:
        ValueError: there is no mesh, or the Recipe does not fit it.
    """
    devices = layout.devices.size
    layout.check(recipe, config)
    optimizer = make_optimizer(config, recipe.optimizer, recipe.steps)
    options = step_options(recipe)
    state, batches = state_shapes(recipe, config, layout), batch_shapes(recipe, layout)
    steps: Any = many_steps(config, optimizer, options, layout, members=recipe.seeds)
    compiled = steps.lower(state, batches).compile()
    analysis: Any = compiled.memory_analysis()
    alone: Any = many_steps(config, optimizer, options, members=recipe.seeds)
    members = recipe.seeds * recipe.batch
    return Plan(
        parameters=own_bytes(state.params),
        optimizer=own_bytes(state.optimizer),
        batch=own_bytes(batches),
        temporaries=analysis.temp_size_in_bytes,
        collectives=count_collectives(compiled.as_text()),
        flops=program_flops(alone, state, batches) / devices,
        model_flops=members * train_flops(config, recipe.context) / devices,
    )


def count_collectives(text: str) -> dict[str, int]:
    """Count the collectives in the text of a compiled program; a pair of start and done counts once.

    The body of a loop is in the text once.

    >>> count_collectives("%a = f32[8] all-gather-start(%x), ... %b = f32[8] all-gather-done(%a)")
    {'all-gather': 1}
    """
    return dict(Counter(COLLECTIVE.findall(text)))


COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|"
    r"collective-broadcast)(?:-start)?\("
)
"""Collectives as XLA prints them."""


def own_bytes(shapes: Any) -> int:
    """Return the bytes of some arrays on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )
