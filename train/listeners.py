"""Other readers of the metrics while a run lasts."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from train.metrics import Line, Listener
from train.runs import RunError


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
