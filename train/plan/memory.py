"""One training step, compiled for devices that need not be there: what one of them has to hold, send and compute."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from jaxformer.config import Config
from train.devices.layout import Layout
from train.optimizer import make_optimizer
from train.plan.activations import kept_bytes
from train.plan.collectives import (
    Kind,
    Traffic,
    collectives,
    compile_to_text,
    totals,
    with_reduce_scatter,
)
from train.plan.flops import program_flops, train_flops
from train.recipe import Recipe
from train.run import batch_shapes, how_of, state_shapes
from train.step import many_steps


class Plan(NamedTuple):
    """What one device holds, sends and computes in a step."""

    parameters: int
    """bytes, like all that has no other unit"""
    optimizer: int
    batch: int
    kept: int
    """activations that the backward pass reads, a part of the temporaries"""
    temporaries: int
    """all that XLA allocates beside what comes in and goes out"""
    sent: dict[Kind, Traffic]
    """as XLA for CPU compiled it"""
    sent_scattered: dict[Kind, Traffic]
    """with reduce-scatters, as it would for GPU and TPU"""
    flops: float
    """of matrix products, what is computed again included; a device's share, if all have the same"""
    model_flops: float
    """of these, what the model's formula has: one forward and one backward pass"""

    @property
    def memory(self) -> int:
        """All of it at once, while a checkpoint is written from a copy of the state."""
        return 2 * self.state + self.batch + self.temporaries

    @property
    def state(self) -> int:
        """What a checkpoint holds."""
        return self.parameters + self.optimizer

    @property
    def traffic(self) -> int:
        """Bytes read and written at the least: state once, for the update, and what is kept."""
        return 2 * (self.state + self.kept)


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
    compiled, text = compile_to_text(steps.lower(state, batches))
    analysis: Any = compiled.memory_analysis()
    found = collectives(text)
    alone: Any = many_steps(config, optimizer, replace(how, layout=Layout()), members=recipe.seeds)
    members = recipe.seeds * recipe.batch
    return Plan(
        parameters=own_bytes(state.params),
        optimizer=own_bytes(state.optimizer),
        batch=own_bytes(batches),
        kept=kept_bytes(recipe, config, layout),
        temporaries=analysis.temp_size_in_bytes,
        sent=totals(found),
        sent_scattered=totals(with_reduce_scatter(found)),
        flops=program_flops(alone, state, batches) / devices,
        model_flops=members * train_flops(config, recipe.context) / devices,
    )


def own_bytes(shapes: Any) -> int:
    """Bytes that one device holds of some arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )
