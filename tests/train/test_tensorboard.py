"""TensorBoard: the numbers of the metrics, without those of unsaved steps."""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from tests.helpers.runs import check_refused, folder_of, options
from train.__main__ import main
from train.metrics import read_metrics, tensorboard

pytestmark = pytest.mark.usefixtures("standard_promotion")


def events(folder: Path) -> Iterator[Any]:
    """Yield all written events, in order. A record is a length, its CRC, the event and its CRC."""
    make: Any = event_pb2
    for file in sorted((folder / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            [length] = struct.unpack("<Q", data[:8])
            yield make.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """Return the scalars that TensorBoard shows: a start at a step hides earlier events of this and later steps."""
    shown: dict[tuple[str, int], float] = {}
    for event in events(folder):
        if event.HasField("session_log"):
            shown = {key: value for key, value in shown.items() if key[1] < event.step}
        for value in event.summary.value:
            assert (value.tag, event.step) not in shown
            shown[value.tag, event.step] = value.simple_value
    return shown


@pytest.mark.slow
def test_the_scalars_are_the_metrics(corpus: Path):
    command = options(corpus, "board", 20, "--tensorboard", "--seeds", "2")
    assert main(command) == 0
    expected = {
        (name, line["step"]): value
        for line in read_metrics(folder_of(command))
        for name, value in line.items()
        if name != "step" and not isinstance(value, list)
    }
    assert ("validation_loss_spread", 20) in expected
    assert scalars(folder_of(command)) == pytest.approx(expected, rel=1e-6)


def test_unsaved_steps_are_hidden_after_resuming(tmp_path: Path):
    with tensorboard(tmp_path)(0) as first:
        for step in (0, 5, 10, 15):
            first({"step": step, "loss": float(step)})
    with tensorboard(tmp_path)(10) as again:
        for step in (15, 20):
            again({"step": step, "loss": -float(step)})
    assert scalars(tmp_path) == {
        ("loss", 0): 0.0, ("loss", 5): 5.0, ("loss", 10): 10.0, ("loss", 15): -15.0, ("loss", 20): -20.0,
    }  # fmt: skip


def test_without_the_package_the_option_is_refused(corpus: Path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    command = options(corpus, "board", 20, "--tensorboard")
    check_refused(capsys, command, "--tensorboard", "tensorboardX")
    assert not folder_of(command).exists()
