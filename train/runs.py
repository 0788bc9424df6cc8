"""A run's folder: what it is a run of, its metrics, and the states that it can go on from.

run.json         the Recipe and the corpus's hash
metrics.jsonl    one line per compiled call, one per validation
checkpoints/     full training states (orbax): the last ones and the best one
model/           the best model so far, for `jaxformer.load` and `train.sample`; models/SEED of an ensemble
report.png       the losses, and whatever else the metrics hold
samples.txt      a text from before the first step and one from the best model
tensorboard/     the metrics once more, if asked for
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxformer.checkpoint import replace_file
from train.about import read_about
from train.recipe import Recipe
from train.step import TrainState, steps_done

Line = dict[str, Any]
"""One line of the metrics: `step`, then numbers, or nested lists of them, by name."""


Listener = Callable[[int], contextlib.AbstractContextManager[Callable[[Line], None]]]
"""Entered with the step that a run starts from, it gives what to call with every line."""


class RunError(Exception):
    """A run that cannot start, go on or be saved, and what to do about it."""


def open_run(folder: Path, recipe: Recipe, corpus: str, *, resume: bool, overwrite: bool) -> None:
    """Make a run's folder, or check that the one there is a run of the same Recipe and text.

    Raises:
        RunError: the name is taken, there is nothing to resume, or it was another run.
        OSError: the folder cannot be made.
    """
    about = {"recipe": dataclasses.asdict(recipe), "corpus_sha256": corpus}
    about = json.loads(json.dumps(about))
    if resume:
        _check_same(folder, about)
        return
    if folder.exists() and not overwrite:
        raise RunError(
            f"{folder} exists; choose another name (--name), go on with it (--resume) or replace it (--overwrite)"
        )
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "run.json").is_file():
            raise RunError(
                f"{folder} is not a run's folder (no run.json in it); nothing was removed"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    replace_file(folder / "run.json", json.dumps(about, indent=2).encode())


def _check_same(folder: Path, about: dict[str, Any]) -> None:
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"there is no run to resume in {folder}; leave --resume out to start one")
    was, now = flat(read_about(path)), flat(about)
    if different := sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k)):
        changes = "; ".join(f"{k} was {was.get(k)!r}, is {now.get(k)!r}" for k in different)
        raise RunError(
            f"{folder} is a run of another recipe: {changes}. Resume it with its own options, "
            "or start another run with --name"
        )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, the names joined by dots."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


class Metrics:
    """`metrics.jsonl`, opened at a step: lines from after it belong to a future that was not saved.

    Each line goes to the listeners too.
    """

    def __init__(self, folder: Path, step: int, listeners: Sequence[Callable[[Line], None]] = ()):
        self.path = folder / "metrics.jsonl"
        self.listeners = listeners
        self.lines = [line for line in read_metrics(folder) if line["step"] <= step]
        replace_file(self.path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def write(self, line: Line) -> None:
        """Add a line; it is on the disk when this returns."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for listen in self.listeners:
            listen(line)

    def validations(self) -> dict[int, float]:
        """The mean validation loss of every step that has one."""
        return {x["step"]: x["validation_loss"] for x in self.lines if "validation_loss" in x}

    def best(self) -> float:
        """The lowest validation loss so far."""
        return min(self.validations().values(), default=math.inf)

    def best_step(self) -> int | None:
        """The first step that had it."""
        losses = self.validations()
        return min(losses, key=lambda step: (losses[step], step), default=None)


def read_metrics(folder: Path) -> list[Line]:
    """The whole lines of a run's metrics; the last one is left out if a crash cut it short.

    Raises:
        ValueError: another line is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [_read_line(path, i, line) for i, line in enumerate(whole.split(b"\n"), 1) if line]


def _read_line(path: Path, number: int, text: bytes) -> Line:
    with contextlib.suppress(ValueError):
        line = json.loads(text)
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            return line
    raise ValueError(f"line {number} of {path} is damaged: it is no line of metrics; remove it")


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

    def __init__(
        self, folder: Path, keep: int = 1, best_step: Callable[[], int | None] = lambda: None
    ):
        self.folder = folder / "checkpoints"
        options = ocp.CheckpointManagerOptions(preservation_policy=LastAndBest(keep, best_step))
        self.manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def save(self, state: TrainState) -> None:
        """Begin to save; an earlier save that failed is reported here or by `finish`."""
        step = steps_done(state)
        if step in self.manager.all_steps():
            return
        own = jax.tree.map(jnp.copy, state)  # the next step takes the state's buffers for its own
        own = _without_empty(own, own)
        named = ocp.args.Composite(state=ocp.args.StandardSave(own))
        self._explained(lambda: self.manager.save(step, args=named))

    def finish(self) -> None:
        """Wait until all that was begun is on the disk."""
        self._explained(self.manager.wait_until_finished)

    def remove(self, step: int) -> None:
        """Forget the state of a step, which was no good."""
        self.finish()
        self.manager.delete(step)

    def restore(self, like: TrainState) -> TrainState:
        """The last whole state.

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
        shape = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        named = ocp.args.Composite(state=ocp.args.StandardRestore(_without_empty(shape, like)))
        read = self.manager.restore(step, args=named)["state"]
        return jax.tree.map(lambda x, there: there if x.size else x, like, read)

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
