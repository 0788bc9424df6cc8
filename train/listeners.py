"""Other readers of the metrics while a run lasts."""

from collections.abc import Callable
from pathlib import Path

from train.runs import Line, RunError


def tensorboard(folder: Path) -> Callable[[int], Callable[[Line], None]]:
    """Writes every number as a TensorBoard scalar: a function from the first step to a listener.

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

    def begin(step: int) -> Callable[[Line], None]:
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

        def listen(line: Line) -> None:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    writer.add_scalar(name, value, line["step"])
            writer.flush()

        return listen

    return begin
