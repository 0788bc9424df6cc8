"""Other readers of the metrics while a run lasts."""

from collections.abc import Callable
from pathlib import Path

from train.runs import Line, RunError


def tensorboard(folder: Path, step: int) -> Callable[[Line], None]:
    """A listener that writes every number as a TensorBoard scalar, going on from a step.

    Raises:
        RunError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise RunError(
            "--tensorboard needs tensorboardX: python -m pip install 'jaxformer[tensorboard]'"
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def listen(line: Line) -> None:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return listen
