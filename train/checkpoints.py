"""Checkpoints: training states that a run can resume from."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from train.runs import RunError
from train.step import TrainState, steps_done


@dataclasses.dataclass
class LastAndBest:
    """The policy for which checkpoints orbax keeps: the latest ones, and the one with the lowest validation loss.

    A state is saved before its validation, so the best step is looked up in the metrics at the next save.
    """

    last: int
    best_step: Callable[[], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Return for each checkpoint, in the order of steps, whether to keep it."""
        del context
        recent = len(checkpoints) - self.last
        best = self.best_step()
        return [i >= recent or info.step == best for i, info in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints of a run, which orbax saves in the background; the latest and the best are kept.

    Orbax writes into a temporary folder and renames it at the end, so a folder with a step as its name is complete.
    """

    def __init__(self, folder: Path, keep: int = 1):
        self.folder = folder / "checkpoints"
        self.best_step: Callable[[], int | None] = lambda: None
        """called at every save; replaced once the metrics are open"""
        policy = LastAndBest(keep, lambda: self.best_step())
        options = ocp.CheckpointManagerOptions(preservation_policy=policy)
        self.manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def save(self, state: TrainState) -> None:
        """Begin to save; a failure of an earlier save is raised here or in `finish`.

        The next step may donate the state's buffers: JAX does not donate those that orbax still holds.
        """
        step = steps_done(state)
        if step in self.manager.all_steps():
            return
        saved = ocp.args.Composite(state=ocp.args.StandardSave(_without_empty(state, state)))
        self._explained(lambda: self.manager.save(step, args=saved))

    def finish(self) -> None:
        """Wait until all begun saves are on the disk."""
        self._explained(self.manager.wait_until_finished)

    def remove(self, step: int) -> None:
        """Remove the checkpoint of a step."""
        self.finish()
        self.manager.delete(step)

    def restore(self, like: TrainState) -> TrainState:
        """Read the latest checkpoint with the shapes and shardings of `like`, whose values are not read.

        Raises:
            RunError: there is no checkpoint, or it cannot be read; the message names the latest readable one.
        """
        steps = sorted(self.manager.all_steps())
        if not steps:
            raise RunError(
                f"{self.folder} holds no complete checkpoint yet; start the run again with --overwrite"
            )
        try:
            return self._read(steps[-1], like)
        except Exception as error:  # orbax and tensorstore raise many kinds
            why = str(error).partition("\n")[0]
            damaged = self.folder / str(steps[-1])
            raise RunError(
                f"the checkpoint {damaged} cannot be read: {why}. {self._way_on(steps, like)}"
            ) from error

    def last(self) -> str:
        """Return the folder of the latest checkpoint, or "none"."""
        step = self.manager.latest_step()
        return "none" if step is None else str(self.folder / str(step))

    def close(self) -> None:
        """Wait for all begun saves and release orbax's threads."""
        self._explained(self.manager.close)

    def unwritten(self, error: Exception) -> RunError:
        """Wait for earlier saves, and return the error to raise when writing to the run's folder fails."""
        with contextlib.suppress(Exception):  # waiting fails for the same reason
            self.manager.wait_until_finished()
        why = str(error).partition("\n")[0]
        return RunError(
            f"the run cannot be written to {self.folder.parent}: {why}. The last good checkpoint is "
            f"{self.last()}; free some space there, then continue with --resume"
        )

    def _read(self, step: int, like: TrainState) -> TrainState:
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        wanted = ocp.args.Composite(state=ocp.args.StandardRestore(_without_empty(shapes, like)))
        read = self.manager.restore(step, args=wanted)["state"]
        return jax.tree.map(
            lambda x, found: found if x.size else jnp.zeros(x.shape, x.dtype, device=x.sharding),
            shapes,
            read,
        )

    def _way_on(self, steps: Sequence[int], like: TrainState) -> str:
        for step in reversed(steps[:-1]):
            with contextlib.suppress(Exception):  # this one cannot be read either
                self._read(step, like)
                return (
                    f"The latest readable checkpoint is {self.folder / str(step)}: remove the folders of later "
                    "steps, then continue with --resume"
                )
        return "There is no readable checkpoint; start the run again with --overwrite"

    def _explained(self, write: Any) -> None:
        try:
            write()
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self.unwritten(error) from error


def _without_empty(tree: Any, like: TrainState) -> Any:
    """Replace empty arrays (of a model without layers) by None, because orbax refuses to save them."""
    return jax.tree.map(lambda x, value: value if x.size else None, like, tree)
