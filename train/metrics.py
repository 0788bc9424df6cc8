"""What a run measures, line by line: `metrics.jsonl`."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxformer.pretrained.atomic import replace_file
from train.runs import RunError

Line = dict[str, Any]
"""One line of the metrics: `step`, then numbers, or nested lists of them, by name."""


Listener = Callable[[int], contextlib.AbstractContextManager[Callable[[Line], None]]]
"""Entered with the step that a run starts from, it gives what to call with every line."""


class Metrics:
    """`metrics.jsonl`, opened at a step: lines from after it belong to a future that was not saved.

    Each line goes to the listeners too. Of several processes one writes; the others keep the lines to themselves.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        listeners: Sequence[Callable[[Line], None]] = (),
        *,
        writes: bool = True,
    ):
        self.path, self.listeners, self.writes = folder / "metrics.jsonl", listeners, writes
        self.lines = [line for line in read_metrics(folder) if line["step"] <= step]
        if writes:
            text = "".join(json.dumps(line) + "\n" for line in self.lines)
            replace_file(self.path, text.encode())

    def write(self, line: Line) -> None:
        """Add a line; it is on the disk when this returns."""
        self.lines.append(line)
        if not self.writes:
            return
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


def tensorboard(folder: Path) -> Listener:
    """Writes every number as a TensorBoard scalar: entered with the step that a run starts from.

    What an earlier process wrote of later steps belongs to a future that was not saved: it is hidden.

    Raises:
        RunError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise RunError(
            "--tensorboard needs tensorboardX: python -m pip install 'jaxformer[tensorboard]'"
        ) from error

    @contextlib.contextmanager
    def begin(step: int) -> Iterator[Callable[[Line], None]]:
        # A name of its own: what was begun within the same second would be written over.
        own = {"purge_step": step + 1, "filename_suffix": f".{step}"}
        writer = SummaryWriter(str(folder / "tensorboard"), **own)

        def listen(line: Line) -> None:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    writer.add_scalar(name, value, line["step"])
            writer.flush()

        try:
            yield listen
        finally:
            writer.close()  # it writes in a thread of its own: without this the last lines are lost

    return begin
