"""Loss, gradient, update: one training step, and many of them as one compiled call."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.params import Params
from jaxformer.transformer import forward
from train.batches import Batch


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


def token_losses(
    params: Params, config: Config, window: Int[Array, " window"], compute: Compute
) -> Float[Array, " context"]:
    """The cross-entropy of each next token, in nats, float32."""
    logits = forward(params, config, window[:-1], compute=compute).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), window[1:])


def summed_loss(params: Params, config: Config, batch: Batch, compute: Compute) -> Float[Array, ""]:
    """The sum over the targets that count."""
    losses = jax.vmap(token_losses, in_axes=(None, None, 0, None))
    each = losses(params, config, batch.windows, compute)
    return jnp.where(batch.counted, each, 0.0).sum()


def loss_and_gradient(
    params: Params, config: Config, batch: Batch, compute: Compute, accumulate: int = 1
) -> tuple[Float[Array, ""], Any]:
    """The mean loss over the targets that count, and its gradient.

    A batch in `accumulate` parts gives the same, a part after the other, in the memory of one.
    """
    number = jnp.maximum(batch.counted.sum(), 1).astype(jnp.float32)

    def share(params: Params, part: Batch) -> Array:
        return summed_loss(params, config, part, compute) / number

    if accumulate == 1:
        return jax.value_and_grad(share)(params, batch)
    parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
    start = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)

    def add(sums: Any, part: Batch) -> Any:
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(share)(params, part)), None

    return jax.lax.scan(add, start, parts)[0]


def train_step(
    state: TrainState,
    config: Config,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    compute: Compute,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step, and its loss and gradient norm, both from before the update."""
    loss, gradient = loss_and_gradient(state.params, config, batch, compute, accumulate)
    params: Any = state.params  # optax's own name for a tree does not admit a NamedTuple
    changes, moments = optimizer.update(gradient, state.optimizer, params)
    params = optax.apply_updates(params, changes)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    return TrainState(state.step + 1, params, moments), metrics


Steps = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Float[Array, "steps *members"]]]]


def many_steps(
    config: Config,
    optimizer: optax.GradientTransformation,
    compute: Compute,
    *,
    accumulate: int = 1,
    members: int = 1,
) -> Steps:
    """A compiled function that trains one step per batch; it takes the state's buffers for its own.

    With several members, state and batches have one more axis: batches are [steps, member, b, ...].
    """

    def step(state: TrainState, batch: Batch) -> Any:
        return train_step(state, config, batch, optimizer, compute, accumulate)

    each = step if members == 1 else jax.vmap(step)
    return jax.jit(lambda state, batches: jax.lax.scan(each, state, batches), donate_argnums=0)


def validation_sums(
    config: Config, compute: Compute, members: int = 1
) -> Callable[[Params, Batch], Float[Array, "*members n"]]:
    """A compiled function from (params, batches [n b ...]) to each batch's summed loss."""

    def sums(params: Params, batches: Batch) -> Array:
        return jax.lax.map(lambda batch: summed_loss(params, config, batch, compute), batches)

    return jax.jit(sums if members == 1 else jax.vmap(sums, in_axes=(0, None)))
