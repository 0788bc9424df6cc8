"""What a run knows of a state: its validation loss, and what the Recipe watches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxformer.model.params import Params
from train.data.batches import Batch
from train.metrics import Line
from train.run import Run
from train.step import TrainState, steps_done, validation_sums
from train.watch import watcher


def make_evaluation(run: Run) -> Callable[[TrainState], Line]:
    """A function from a state to its line of the metrics.

    `validation_loss` is the mean over every token of the validation that counts; of an ensemble it is
    the members' mean, beside `validation_losses` of each and their standard deviation, the spread.
    """
    recipe, config, held_out = run.recipe, run.config, run.data.held_out
    members = recipe.seeds
    shared = divisible(held_out, run.layout.parts("batch"))
    batches = run.layout.put(shared, None, run.layout.batch)
    targets = int(np.asarray(held_out.counted).sum())
    sums = validation_sums(config, run.how, members)
    watch = watcher(recipe.watch, config, held_out, recipe.compute)
    look = run.layout.jitted(watch if members == 1 else jax.vmap(watch))

    def evaluate(state: TrainState) -> Line:
        params = state.params
        losses = np.asarray(sums(params, batches)).sum(axis=-1, dtype=np.float64) / targets
        line = {"step": steps_done(state)} | summary("validation_loss", losses)
        seen = look(params) if recipe.watch else {}
        return line | {name: np.asarray(value).tolist() for name, value in seen.items()}

    return evaluate


def divisible(batches: Batch, parts: int) -> Batch:
    """The same batches with rows that do not count behind, so that their number divides.

    >>> batch = Batch(np.ones((1, 3, 5), np.int32), np.ones((1, 3, 4), bool))
    >>> divisible(batch, 2).counted.sum(axis=-1).tolist()
    [[4, 4, 4, 0]]
    """
    missing = -batches.windows.shape[1] % parts
    return jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, missing), (0, 0))), batches)


def summary(name: str, values: Float[np.ndarray, "*members"] | float) -> dict[str, Any]:
    """A number, or the mean of the members' with all of them and their spread beside it.

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
    """Whether every parameter is a finite number."""
    return bool(_finite(params))


@jax.jit
def _finite(params: Params) -> Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
    return jnp.stack(leaves).all()
