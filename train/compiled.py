"""Compiled functions of a run: many training steps in one call, and validation; on a mesh, and for an ensemble."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.model.params import Params
from train.data.batches import Batch
from train.devices.layout import Layout
from train.step import Loss, StepOptions, TrainState, summed_loss, train_step

Steps = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Float[Array, "steps *members"]]]]


def sharded_loss(
    layout: Layout, params: Params, config: Config, batch: Batch, options: StepOptions
) -> Float[Array, ""]:
    """Compute `summed_loss` on a mesh: the compiler is told where parameters, gradients and activations are stored."""
    # The derivative of a sharding constraint is the same constraint on the gradient.
    params = layout.looked_up(layout.pinned(params, config), config)
    batch_axes = layout.batch or None
    return summed_loss(params, config, batch, options, edit=layout.edit, batch_axes=batch_axes)


def loss_on(layout: Layout) -> Loss:
    """Return the loss function for a layout."""
    return summed_loss if layout.mesh is None else partial(sharded_loss, layout)


def many_steps(
    config: Config,
    optimizer: optax.GradientTransformation,
    options: StepOptions = StepOptions(),
    layout: Layout = Layout(),
    *,
    members: int = 1,
) -> Steps:
    """Return a compiled function that trains one step per batch and donates the state's buffers.

    With several members, state and batches have one more axis: batches are [steps, member, b, ...].
    """

    def step(state: TrainState, batch: Batch) -> Any:
        return train_step(state, config, batch, optimizer, options, loss_on(layout))

    each = step if members == 1 else jax.vmap(step)

    def steps(state: TrainState, batches: Batch) -> Any:
        after, metrics = jax.lax.scan(each, state, batches)
        if layout.mesh is None:
            return after, metrics
        where = layout.state(config, after), layout.everywhere
        return jax.lax.with_sharding_constraint((after, metrics), where)

    return jax.jit(steps, donate_argnums=0)


def validation_sums(
    config: Config,
    options: StepOptions = StepOptions(),
    layout: Layout = Layout(),
    *,
    members: int = 1,
) -> Callable[[Params, Batch], Float[Array, "*members batches"]]:
    """Return a compiled function from (params, batches [batches b ...]) to each batch's summed loss."""
    loss = loss_on(layout)

    def sums(params: Params, batches: Batch) -> Array:
        return jax.lax.map(lambda batch: loss(params, config, batch, options), batches)

    each = sums if members == 1 else jax.vmap(sums, in_axes=(0, None))
    return layout.jitted(each)
