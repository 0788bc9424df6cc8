"""One training step: loss, gradient, update. `train.compiled` runs many of them, on one device or on a mesh."""

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
from jaxformer.likelihood import score
from jaxformer.model.params import Params
from jaxformer.sites import Edit, identity
from train.data.batches import Batch


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint holds. The batches follow from the step, so they are not saved.

    In an ensemble every array has a leading axis of members.
    """

    step: Any  # Int[Array, ""]; other types where a tree.map replaces the arrays
    params: Params
    optimizer: Any


def steps_done(state: TrainState) -> int:
    """Return the step of a state; all members of an ensemble are at the same step."""
    return int(np.ravel(state.step)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How to compute a step; never what it computes."""

    compute: Compute = Compute()
    accumulate: int = 1
    """micro-batches per step, whose gradients are summed; uses the memory of one"""
    vocab_chunk: int | None = None
    """vocabulary entries whose logits are computed at a time; None: all"""


def summed_loss(
    params: Params, config: Config, batch: Batch, options: StepOptions = StepOptions(), *,
    edit: Edit = identity, batch_axes: Any = None,
) -> Float[Array, ""]:  # fmt: skip
    """Sum the cross-entropy over the targets that count, in float32.

    On a mesh, `edit` tells the compiler how to shard activations, and the batch is sharded over batch_axes.
    """

    def losses(window: Int[Array, " window"]) -> Float[Array, " context"]:
        scores = score(
            params, config, window,
            edit=edit, vocab_chunk=options.vocab_chunk, compute=options.compute,
        )  # fmt: skip
        return -scores.astype(jnp.float32)

    each = jax.vmap(losses, spmd_axis_name=batch_axes)(batch.windows)
    return jnp.where(batch.counted, each, 0.0).sum()


Loss = Callable[[Params, Config, Batch, StepOptions], Array]
"""A function with the signature of `summed_loss`."""


def loss_and_gradient(
    params: Params,
    config: Config,
    batch: Batch,
    options: StepOptions = StepOptions(),
    loss: Loss = summed_loss,
) -> tuple[Float[Array, ""], Any]:
    """Return the mean loss over the targets that count, and its gradient.

    Gradient accumulation gives the same numbers: sequence i is in micro-batch i modulo their number.
    """
    targets = jnp.maximum(batch.counted.sum(), 1).astype(jnp.float32)
    mean = jax.value_and_grad(lambda params, part: loss(params, config, part, options) / targets)
    if options.accumulate == 1:
        return mean(params, batch)

    def add(sums: Any, micro_batch: Batch) -> Any:
        return jax.tree.map(jnp.add, sums, mean(params, micro_batch)), None

    micro_batches = jax.tree.map(
        lambda x: x.reshape(-1, options.accumulate, *x.shape[1:]).swapaxes(0, 1), batch
    )
    zeros = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, micro_batches)[0]


def train_step(
    state: TrainState,
    config: Config,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    options: StepOptions = StepOptions(),
    loss: Loss = summed_loss,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Take one step; return also its loss and its gradient norm, both from before the update."""
    value, gradient = loss_and_gradient(state.params, config, batch, options, loss)
    params: Any = state.params  # optax's type of a tree does not admit a NamedTuple
    updates, moments = optimizer.update(gradient, state.optimizer, params)
    params = optax.apply_updates(params, updates)
    metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradient)}
    return TrainState(state.step + 1, params, moments), metrics
