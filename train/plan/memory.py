"""One training step, compiled for devices that need not be there: what one of them has to hold and compute."""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from jaxformer.config import Config
from train.devices.layout import Layout
from train.optimizer import make_optimizer
from train.plan.flops import program_flops, train_flops
from train.recipe import Recipe
from train.run import batch_shapes, how_of, state_shapes
from train.step import many_steps


class Plan(NamedTuple):
    """What one device holds and computes in a step."""

    parameters: int
    """bytes, like all that has no other unit"""
    optimizer: int
    batch: int
    temporaries: int
    """all that XLA allocates beside what comes in and goes out"""
    collectives: dict[str, int]
    """how often each kind stands in the program's text; a loop's body counts once"""
    flops: float
    """of matrix products, what is computed again included; a device's share, if all have the same"""
    model_flops: float
    """of these, what the model's formula has: one forward and one backward pass"""

    @property
    def memory(self) -> int:
        """All of it at once."""
        return self.state + self.batch + self.temporaries

    @property
    def state(self) -> int:
        """What a checkpoint holds."""
        return self.parameters + self.optimizer

    @property
    def traffic(self) -> int:
        """Bytes read and written at the least: the state, once, for the update."""
        return 2 * self.state


def plan(recipe: Recipe, config: Config, layout: Layout) -> Plan:
    """Compile one training step for a mesh, and read off what it takes.

    Raises:
        ValueError: no mesh; a recipe that does not fit it.
    """
    devices = layout.devices.size
    layout.check(recipe, config)
    optimizer = make_optimizer(config, recipe.optimizer, recipe.steps)
    how = how_of(recipe, layout)
    state, batches = state_shapes(recipe, config, layout), batch_shapes(recipe, layout)
    steps: Any = many_steps(config, optimizer, how, members=recipe.seeds)
    compiled = steps.lower(state, batches).compile()
    analysis: Any = compiled.memory_analysis()
    alone: Any = many_steps(config, optimizer, replace(how, layout=Layout()), members=recipe.seeds)
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
    """How often each collective operation stands in a compiled program's text; one with start and done counts once.

    A loop's body stands there once, however often it runs.

    >>> count_collectives("%a = f32[8] all-gather-start(%x), ... %b = f32[8] all-gather-done(%a)")
    {'all-gather': 1}
    """
    return dict(Counter(COLLECTIVE.findall(text)))


COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|"
    r"collective-broadcast)(?:-start)?\("
)
"""As XLA prints them."""


def own_bytes(shapes: Any) -> int:
    """Bytes that one device holds of some arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )
