"""The metrics of a run: one JSON line per measurement, in `metrics.jsonl`."""

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
"""One line of the metrics: the step, and named numbers or nested lists of numbers."""


Listener = Callable[[int], contextlib.AbstractContextManager[Callable[[Line], None]]]
"""A context manager for the step that a run starts from; it yields a function to call with every line."""


class Metrics:
    """`metrics.jsonl`, opened at the step of a checkpoint; later lines are removed, because their steps will run again.

    The listeners receive each line too. Only one process writes; the others keep the lines in memory.
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
        """Add a line and wait until it is on the disk."""
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
        """Return the validation loss of each step that has one, as a mean over seeds."""
        return {x["step"]: x["validation_loss"] for x in self.lines if "validation_loss" in x}

    def best(self) -> float:
        """Return the lowest validation loss so far."""
        return min(self.validations().values(), default=math.inf)

    def best_step(self) -> int | None:
        """Return the first step with the lowest validation loss."""
        losses = self.validations()
        return min(losses, key=lambda step: (losses[step], step), default=None)


def read_metrics(folder: Path) -> list[Line]:
    """Read the metrics of a run, without a last line that a crash left incomplete.

    Raises:
        ValueError: any other line is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    complete = path.read_bytes().rpartition(b"\n")[0]
    return [_read_line(path, i, line) for i, line in enumerate(complete.split(b"\n"), 1) if line]


def _read_line(path: Path, number: int, text: bytes) -> Line:
    with contextlib.suppress(ValueError):
        line = json.loads(text)
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            return line
    raise ValueError(f"line {number} of {path} is damaged and does not hold metrics; remove it")


def tensorboard(folder: Path) -> Listener:
    """Return a listener that writes every number as a TensorBoard scalar.

    It hides what an earlier process wrote of later steps, because they will run again.

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
        # A unique name: a second file that begins within the same second would replace the first.
        names = {"purge_step": step + 1, "filename_suffix": f".{step}"}
        writer = SummaryWriter(str(folder / "tensorboard"), **names)

        def listen(line: Line) -> None:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    writer.add_scalar(name, value, line["step"])
            writer.flush()

        try:
            yield listen
        finally:
            writer.close()  # without close, tensorboardX's thread loses the last lines

    return begin
