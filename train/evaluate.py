"""Validation: the loss of a training state, and the measurements of `--watch`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxformer.model.params import Params
from train.compiled import validation_sums
from train.data.batches import Batch
from train.metrics import Line
from train.run import Run
from train.step import TrainState, steps_done
from train.watch import watcher


def make_evaluation(run: Run) -> Callable[[TrainState], Line]:
    """Return a function from a state to its line of metrics.

    `validation_loss` is the mean over all validation targets that count. For an ensemble it is the mean over members;
    `validation_losses` has the loss of each member, and `validation_loss_spread` their standard deviation.
    """
    recipe, config, held_out = run.recipe, run.config, run.data.held_out
    members = recipe.seeds
    padded = divisible(held_out, run.layout.parts("batch"))
    batches = run.layout.put(padded, None, run.layout.batch)
    targets = int(np.asarray(held_out.counted).sum())
    sums = validation_sums(config, run.step_options, run.layout, members=members)
    watch = watcher(recipe.watch, config, held_out, recipe.compute)
    measure = run.layout.jitted(watch if members == 1 else jax.vmap(watch))

    def evaluate(state: TrainState) -> Line:
        params = state.params
        losses = np.asarray(sums(params, batches)).sum(axis=-1, dtype=np.float64) / targets
        line = {"step": steps_done(state)} | summary("validation_loss", losses)
        watched = measure(params) if recipe.watch else {}
        return line | {name: np.asarray(value).tolist() for name, value in watched.items()}

    return evaluate


def divisible(batches: Batch, parts: int) -> Batch:
    """Append rows that do not count, so that the number of rows is a multiple of `parts`.

    >>> batch = Batch(np.ones((1, 3, 5), np.int32), np.ones((1, 3, 4), bool))
    >>> divisible(batch, 2).counted.sum(axis=-1).tolist()
    [[4, 4, 4, 0]]
    """
    missing = -batches.windows.shape[1] % parts
    return jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, missing), (0, 0))), batches)


def summary(name: str, values: Float[np.ndarray, "*members"] | float) -> dict[str, Any]:
    """Return a number by name; for an ensemble its mean, its standard deviation and the value of each member.

    >>> summary("loss", np.array([1.0, 3.0]))
    {'loss': 2.0, 'loss_spread': 1.0, 'losses': [1.0, 3.0]}
    """
    values = np.asarray(values)
    mean = float(values.mean())
    if not values.ndim:
        return {name: mean}
    spread = float(values.std())
    return {name: mean, f"{name}_spread": spread, f"{name}es": values.tolist()}


def all_finite(params: Params) -> bool:
    """Return whether all parameters are finite."""
    return bool(_finite(params))


@jax.jit
def _finite(params: Params) -> Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
    return jnp.stack(leaves).all()
