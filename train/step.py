"""Loss, gradient, update: one training step, and many of them as one compiled call."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.model.params import Params
from train.data.batches import Batch
from train.devices.layout import Layout
from train.loss import token_losses


@flax.struct.dataclass
class TrainState:
    """All that a run needs to go on: batches follow from the step, an int32 scalar.

    An ensemble's has a leading axis of members on every array.
    """

    step: Any  # arrays, or whatever a tree.map puts in their places
    params: Params
    optimizer: Any


def steps_done(state: TrainState) -> int:
    """The step of a state; members of an ensemble are all at the same."""
    return int(np.ravel(state.step)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
    """How steps are run; never what they compute."""

    compute: Compute = Compute()  # noqa: RUF009  frozen
    accumulate: int = 1
    """parts of a batch, one after another in the memory of one"""
    vocab_chunk: int | None = None
    """entries of the vocabulary whose logits exist at once; None: all"""
    layout: Layout = Layout()  # noqa: RUF009  frozen
    """the devices, and what lies where on them"""


def summed_loss(params: Params, config: Config, batch: Batch, how: How = How()) -> Float[Array, ""]:
    """The sum over the targets that count."""

    def losses(window: Int[Array, " window"]) -> Float[Array, " context"]:
        return token_losses(
            params, config, window, how.compute, edit=how.layout.edit, vocab_chunk=how.vocab_chunk
        )

    params = how.layout.looked_up(config, params)
    each = how.layout.batched(losses)(batch.windows)
    return jnp.where(batch.counted, each, 0.0).sum()


def loss_and_gradient(
    params: Params, config: Config, batch: Batch, how: How = How()
) -> tuple[Float[Array, ""], Any]:
    """The mean loss over the targets that count, and its gradient.

    A batch in parts gives the same, a part after the other, in the memory of one. Every device has its share
    of each part: sequence i is in part i modulo their number.
    """
    number = jnp.maximum(batch.counted.sum(), 1).astype(jnp.float32)

    def share(part: Batch) -> tuple[Array, Any]:
        loss, gradient = jax.value_and_grad(
            lambda params: summed_loss(params, config, part, how) / number
        )(params)
        return loss, how.layout.pinned(config, gradient)

    if how.accumulate == 1:
        return share(batch)
    parts = jax.tree.map(
        lambda x: x.reshape(-1, how.accumulate, *x.shape[1:]).swapaxes(0, 1), batch
    )
    start = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)

    def add(sums: Any, part: Batch) -> Any:
        return jax.tree.map(jnp.add, sums, share(part)), None

    return jax.lax.scan(add, start, parts)[0]


def train_step(
    state: TrainState,
    config: Config,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    how: How = How(),
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step, and its loss and gradient norm, both from before the update."""
    loss, gradient = loss_and_gradient(state.params, config, batch, how)
    params: Any = state.params  # optax's own name for a tree does not admit a NamedTuple
    changes, moments = optimizer.update(gradient, state.optimizer, params)
    params = optax.apply_updates(params, changes)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    return TrainState(state.step + 1, params, moments), metrics


Steps = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Float[Array, "steps *members"]]]]


def many_steps(
    config: Config, optimizer: optax.GradientTransformation, how: How = How(), *, members: int = 1
) -> Steps:
    """A compiled function that trains one step per batch; it takes the state's buffers for its own.

    With several members, state and batches have one more axis: batches are [steps, member, b, ...].
    """

    def step(state: TrainState, batch: Batch) -> Any:
        return train_step(state, config, batch, optimizer, how)

    each = step if members == 1 else jax.vmap(step)
    layout = how.layout

    def steps(state: TrainState, batches: Batch) -> Any:
        after, metrics = jax.lax.scan(each, state, batches)
        if layout.mesh is None:
            return after, metrics
        where = layout.state(config, after), layout.everywhere
        return jax.lax.with_sharding_constraint((after, metrics), where)

    return jax.jit(steps, donate_argnums=0)


def validation_sums(
    config: Config, how: How = How(), members: int = 1
) -> Callable[[Params, Batch], Float[Array, "*members n"]]:
    """A compiled function from (params, batches [n b ...]) to each batch's summed loss."""

    def sums(params: Params, batches: Batch) -> Array:
        return jax.lax.map(lambda batch: summed_loss(params, config, batch, how), batches)

    each = sums if members == 1 else jax.vmap(sums, in_axes=(0, None))
    return how.layout.jitted(each)
