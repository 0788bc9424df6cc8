"""Loss, gradient, update: one training step, and many of them as one compiled call."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import Compute, Config
from jaxformer.transformer import Params, forward
from train.batches import draw_batch


@flax.struct.dataclass
class TrainState:
    """All that a run needs to go on: batches follow from the step, an int32 scalar."""

    step: Any  # arrays, or whatever a tree.map puts in their places
    params: Params
    optimizer: Any


def token_losses(
    params: Params, config: Config, window: Int[Array, " window"], compute: Compute
) -> Float[Array, " context"]:
    """The cross-entropy of each next token, in nats, float32."""
    logits = forward(params, config, window[:-1], compute=compute).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), window[1:])


def mean_loss(
    params: Params, config: Config, windows: Int[Array, "b window"], compute: Compute
) -> Float[Array, ""]:
    """The mean over a batch."""
    losses = jax.vmap(token_losses, in_axes=(None, None, 0, None))
    return losses(params, config, windows, compute).mean()


def train_step(
    state: TrainState,
    config: Config,
    windows: Int[Array, "b window"],
    optimizer: optax.GradientTransformation,
    compute: Compute,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step, and its loss and gradient norm, both from before the update."""
    loss, gradient = jax.value_and_grad(mean_loss)(state.params, config, windows, compute)
    params: Any = state.params  # optax's own name for a tree does not admit a NamedTuple
    changes, moments = optimizer.update(gradient, state.optimizer, params)
    params = optax.apply_updates(params, changes)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    return TrainState(state.step + 1, params, moments), metrics


Steps = Callable[
    [TrainState, Int[Array, " corpus"], Key[Array, ""]],
    tuple[TrainState, dict[str, Float[Array, " steps"]]],
]


def many_steps(
    config: Config,
    optimizer: optax.GradientTransformation,
    *,
    batch: int,
    context: int,
    compute: Compute,
    length: int,
) -> Steps:
    """A compiled function that trains `length` steps; it takes the state's buffers for its own."""

    def steps(state: TrainState, tokens: Array, key: Array) -> Any:
        def step(state: TrainState, _: None) -> Any:
            windows = draw_batch(key, state.step, tokens, batch, context)
            return train_step(state, config, windows, optimizer, compute)

        return jax.lax.scan(step, state, length=length)

    return jax.jit(steps, donate_argnums=0)


def summed_losses(config: Config, compute: Compute) -> Callable[..., Float[Array, " n"]]:
    """A compiled function from (params, windows [n b window], mask [n b context]) to each batch's sum."""

    def batch_sum(
        params: Params, windows: Int[Array, "b window"], real: Bool[Array, "b context"]
    ) -> Array:
        losses = jax.vmap(token_losses, in_axes=(None, None, 0, None))
        return jnp.where(real, losses(params, config, windows, compute), 0.0).sum()

    def sums(params: Params, windows: Array, real: Array) -> Array:
        return jax.lax.map(lambda batch: batch_sum(params, *batch), (windows, real))

    return jax.jit(sums)
