"""Runs that fail: the error names the last good checkpoint, which is complete."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxformer import load
from tests.helpers.errors import check_names
from tests.helpers.runs import (
    ROOT,
    Finished,
    assert_same_run,
    check_refused,
    copied_run,
    final_state,
    folder_of,
    kept_steps,
    options,
)
from train import loop
from train.__main__ import main
from train.metrics import read_metrics
from train.step import steps_done

pytestmark = pytest.mark.usefixtures("standard_promotion")


def check_names_the_last(error: str, command: list[str], step: int, *damaged: int) -> None:
    """Check that the error names the latest good checkpoint, besides damaged ones, and that it can be restored."""
    folder = re.escape(str(folder_of(command) / "checkpoints"))
    named = {int(found) for found in re.findall(rf"{folder}/(\d+)", error)}
    assert named == {step, *damaged}, error
    state = final_state(command)
    assert steps_done(state) == step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


WILD = ["--optimizer.learning-rate", "1e30", "--optimizer.clip", "1e30"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_its_checkpoints(corpus: Path, capsys):
    command = options(corpus, "nan", 40, *WILD)
    error = check_refused(capsys, command, "--optimizer.learning-rate", 1e30, "step")
    check_names_the_last(error, command, 0)
    params = load(folder_of(command) / "model").params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_a_diverged_validation_is_never_kept(corpus: Path, capsys):
    extra = ["--chunk", "1", "--validate-every", "1", "--optimizer.warmup", "0"]
    command = options(corpus, "gone", 1, *extra, "--optimizer.learning-rate", "1e38")
    named = ("validation loss", "step 1", "--optimizer.learning-rate", 1e38)
    error = check_refused(capsys, command, *named)
    assert [line["step"] for line in read_metrics(folder_of(command))] == [0, 1]
    check_names_the_last(error, command, 0)
    check_refused(capsys, [*command, "--resume"], *named)


@pytest.mark.slow
def test_parameters_that_are_not_finite_are_not_saved(corpus: Path, capsys, monkeypatch):
    """Not even at SIGTERM. The losses of a chunk do not show its last update."""
    extra = ["--chunk", "1", "--optimizer.warmup", "0", "--optimizer.weight-decay", "1e9"]
    command = options(corpus, "inf", 40, *extra, "--optimizer.learning-rate", "1e30")
    draw = loop.draw

    def interrupted(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return draw(*args)

    monkeypatch.setattr(loop, "draw", interrupted)
    error = check_refused(capsys, command, "step 1", "--optimizer.learning-rate", 1e30)
    check_names_the_last(error, command, 0)


FULL = """
import resource, signal, sys, time
from train import checkpoints, metrics, step as steps
from train.__main__ import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
what, step, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
owner = {"checkpoint": checkpoints.Checkpoints, "metrics": metrics.Metrics}[what]
saved = "checkpoints/10"
name = {"checkpoint": "save", "metrics": "write"}[what]
original = getattr(owner, name)

def full(self, given):
    while what == "metrics" and step == given["step"] and not (self.path.parent / saved).is_dir():
        time.sleep(0.01)  # the background save is not complete yet
    if (steps.steps_done(given) if what == "checkpoint" else given["step"]) >= step:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    original(self, given)

setattr(owner, name, full)
sys.exit(main(sys.argv[4:]))
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("what", "step", "size", "saved"), [("checkpoint", 10, 4096, 0), ("metrics", 15, 64, 10)]
)
def test_a_full_disk_ends_the_run_with_an_error(
    finished: Finished, corpus: Path, what: str, step: int, size: int, saved: int
):
    """From a step on, a limit on the size of files stands for a full disk; earlier checkpoints stay readable."""
    command = options(corpus, "full")
    done = subprocess.run(
        [sys.executable, "-c", FULL, what, str(step), str(size), *command],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    # tensorstore may print a traceback when a failed write returns to a closed event loop.
    assert str(ROOT / "train") not in done.stderr
    # Its threads print concurrently, so the error may follow their output on the same line.
    errors = re.findall(r"error: .*", done.stderr)
    assert len(errors) == 1, done.stderr
    check_names(errors[0], folder_of(command), "--resume")
    check_names_the_last(errors[0], command, saved)
    assert main([*command, "--resume"]) == 0
    assert_same_run(finished.command, command)


def cut_short(checkpoint: Path) -> None:
    for file in filter(Path.is_file, checkpoint.rglob("*")):
        os.truncate(file, min(3, file.stat().st_size))


def remove_the_state(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "state")


@pytest.mark.slow(unless=("cut_short",))
@pytest.mark.parametrize("damage", [cut_short, remove_the_state])
def test_a_damaged_checkpoint_names_the_one_before(
    finished: Finished, corpus: Path, capsys, damage: Callable[[Path], None]
):
    command = copied_run(finished, corpus, "hurt")
    folder = folder_of(command) / "checkpoints"
    before, last = sorted(kept_steps(folder_of(command)))
    damage(folder / str(last))
    error = check_refused(capsys, [*command, "--resume"], folder / str(last), "--resume")
    shutil.rmtree(folder / str(last))
    check_names_the_last(error, command, before, last)
    assert main([*command, "--resume"]) == 0
    assert_same_run(finished.command, command)


def test_a_run_without_a_readable_checkpoint_is_refused(finished: Finished, corpus: Path, capsys):
    command = copied_run(finished, corpus, "hurt")
    folder = folder_of(command) / "checkpoints"
    cut_short(folder)
    last = max(kept_steps(folder_of(command)))
    check_refused(capsys, [*command, "--resume"], folder / str(last), "--overwrite")
    shutil.rmtree(folder)
    check_refused(capsys, [*command, "--resume"], folder, "--overwrite")
