"""A run's folder: what it is a run of, its metrics, and the states that it can go on from.

run.json         the Recipe and the corpus's hash
metrics.jsonl    one line per compiled call, one per validation
checkpoints/     full training states (orbax): the last one and the best one
model/           the best model so far, for `jaxformer.load` and `train.sample`
loss.png         the loss curve
samples.txt      a text from before the first step and one from the best model
"""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxformer.checkpoint import replace_file
from train.about import read_about
from train.presets import Recipe
from train.step import TrainState


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
    was, now = _flat(read_about(path)), _flat(about)
    if different := sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k)):
        changes = "; ".join(f"{k} was {was.get(k)!r}, is {now.get(k)!r}" for k in different)
        raise RunError(
            f"{folder} is a run of another recipe: {changes}. Resume it with its own options, "
            "or start another run with --name"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


class Metrics:
    """`metrics.jsonl`, opened at a step: lines from after it belong to a future that was not saved."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "metrics.jsonl"
        self.lines = [line for line in read_metrics(folder) if line["step"] <= step]
        replace_file(self.path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def write(self, **line: int | float) -> None:
        """Add a line; it is on the disk when this returns."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def best(self) -> float:
        """The lowest validation loss so far."""
        return min(
            (x["validation_loss"] for x in self.lines if "validation_loss" in x), default=math.inf
        )


def read_metrics(folder: Path) -> list[dict[str, int | float]]:
    """The whole lines of a run's metrics; one that a crash cut short is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]


class Checkpoints:
    """The states of a run, saved by orbax while training goes on; the last and the best are kept."""

    def __init__(self, folder: Path):
        self.folder = folder / "checkpoints"
        keep = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(1),
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics["validation_loss"],
                    reverse=True,  # the lowest is the best
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=keep)
        self.manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def save(self, state: TrainState, validation_loss: float | None = None) -> None:
        """Begin to save; an earlier save that failed is reported here or by `finish`."""
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        own = jax.tree.map(jnp.copy, state)  # the next step takes the state's buffers for its own
        metrics = None if validation_loss is None else {"validation_loss": validation_loss}
        self._explained(
            lambda: self.manager.save(step, args=ocp.args.StandardSave(own), metrics=metrics)
        )

    def finish(self) -> None:
        """Wait until all that was begun is on the disk."""
        self._explained(self.manager.wait_until_finished)

    def restore(self, like: TrainState) -> TrainState:
        """The last whole state.

        Raises:
            RunError: there is none, or it cannot be read.
        """
        step = self.manager.latest_step()
        if step is None:
            raise RunError(
                f"{self.folder} holds no whole checkpoint yet; start the run again with --overwrite"
            )
        shape: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored: Any = self.manager.restore(step, args=ocp.args.StandardRestore(shape))
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise RunError(
                f"the checkpoint {self.folder / str(step)} cannot be read: {error}"
            ) from error
        return restored

    def close(self) -> None:
        """Release orbax's threads."""
        self.manager.close()

    def _explained(self, write: Any) -> None:
        try:
            write()
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise RunError(
                f"a checkpoint could not be saved in {self.folder}: {error}. What was saved before is whole; "
                "make room there, then go on with --resume"
            ) from error
