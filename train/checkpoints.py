"""The states that a run can go on from."""

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
    """Which checkpoints orbax keeps: the last ones, and that of the lowest validation loss.

    A state is saved before it is validated, so which one is the best is known from the metrics, later.
    """

    last: int
    best_step: Callable[[], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer for each checkpoint, in the order of their steps."""
        del context
        recent = len(checkpoints) - self.last
        best = self.best_step()
        return [i >= recent or info.step == best for i, info in enumerate(checkpoints)]


class Checkpoints:
    """The states of a run, saved by orbax while training goes on; the last and the best are kept.

    Orbax writes into a folder of another name and renames it at the end: what has a step for its name
    is whole.
    """

    def __init__(self, folder: Path, keep: int = 1):
        self.folder = folder / "checkpoints"
        self.best_step: Callable[[], int | None] = lambda: None
        """asked at every save; to be replaced when there are metrics to ask"""
        policy = LastAndBest(keep, lambda: self.best_step())
        options = ocp.CheckpointManagerOptions(preservation_policy=policy)
        self.manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def save(self, state: TrainState) -> None:
        """Begin to save; an earlier save that failed is reported here or by `finish`.

        The next step may take the state's buffers: what orbax holds of them, JAX does not donate.
        """
        step = steps_done(state)
        if step in self.manager.all_steps():
            return
        named = ocp.args.Composite(state=ocp.args.StandardSave(_without_empty(state, state)))
        self._explained(lambda: self.manager.save(step, args=named))

    def finish(self) -> None:
        """Wait until all that was begun is on the disk."""
        self._explained(self.manager.wait_until_finished)

    def remove(self, step: int) -> None:
        """Forget the state of a step, which was no good."""
        self.finish()
        self.manager.delete(step)

    def restore(self, like: TrainState) -> TrainState:
        """The last whole state, laid out as `like`, of which shapes and shardings alone are read.

        Raises:
            RunError: there is none, or it cannot be read; then the last one that can is named.
        """
        steps = sorted(self.manager.all_steps())
        if not steps:
            raise RunError(
                f"{self.folder} holds no whole checkpoint yet; start the run again with --overwrite"
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
        """The last whole checkpoint's folder, in words."""
        step = self.manager.latest_step()
        return "none" if step is None else str(self.folder / str(step))

    def close(self) -> None:
        """Wait for what was begun, and release orbax's threads."""
        self._explained(self.manager.close)

    def unwritten(self, error: Exception) -> RunError:
        """What to say where something cannot be written; what was begun before is waited for."""
        with contextlib.suppress(Exception):  # it fails for the same reason
            self.manager.wait_until_finished()
        why = str(error).partition("\n")[0]
        return RunError(
            f"the run cannot be written to {self.folder.parent}: {why}. The last good checkpoint is "
            f"{self.last()}; make room there, then go on with --resume"
        )

    def _read(self, step: int, like: TrainState) -> TrainState:
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        named = ocp.args.Composite(state=ocp.args.StandardRestore(_without_empty(shapes, like)))
        read = self.manager.restore(step, args=named)["state"]
        return jax.tree.map(
            lambda x, there: there if x.size else jnp.zeros(x.shape, x.dtype, device=x.sharding),
            shapes,
            read,
        )

    def _way_on(self, steps: Sequence[int], like: TrainState) -> str:
        for step in reversed(steps[:-1]):
            with contextlib.suppress(Exception):  # this one cannot be read either
                self._read(step, like)
                return (
                    f"The last good one is {self.folder / str(step)}: remove the folders of later steps, "
                    "then go on with --resume"
                )
        return "No other can; start the run again with --overwrite"

    def _explained(self, write: Any) -> None:
        try:
            write()
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self.unwritten(error) from error


def _without_empty(tree: Any, like: TrainState) -> Any:
    """None for the arrays of a model without layers, which hold nothing: orbax refuses to save them."""
    return jax.tree.map(lambda x, there: there if x.size else None, like, tree)
