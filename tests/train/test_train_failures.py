"""Runs that fail: a sentence, and the last good state is whole and named in it."""

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
    """The checkpoint in the sentence, beside those that are damaged, is the last one, and it can be restored."""
    folder = re.escape(str(folder_of(command) / "checkpoints"))
    named = {int(found) for found in re.findall(rf"{folder}/(\d+)", error)}
    assert named == {step, *damaged}, error
    state = final_state(command)
    assert steps_done(state) == step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


WILD = ["--optimizer.learning-rate", "1e30", "--optimizer.clip", "1e30"]


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_saved(corpus: Path, capsys):
    command = options(corpus, "nan", 40, *WILD)
    error = check_refused(capsys, command, "--optimizer.learning-rate", 1e30, "step")
    check_names_the_last(error, command, 0)
    params = load(folder_of(command) / "model")[1]
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
def test_parameters_that_are_no_numbers_are_not_saved(corpus: Path, capsys, monkeypatch):
    """Not on request either; the last update of a chunk shows in no loss of it."""
    extra = ["--chunk", "1", "--optimizer.warmup", "0", "--optimizer.weight-decay", "1e9"]
    command = options(corpus, "inf", 40, *extra, "--optimizer.learning-rate", "1e30")
    draw = loop.draw

    def asked(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return draw(*args)

    monkeypatch.setattr(loop, "draw", asked)
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
whole = getattr(owner, name)

def full(self, given):
    while what == "metrics" and step == given["step"] and not (self.path.parent / saved).is_dir():
        time.sleep(0.01)  # saving goes on in the background
    if (steps.steps_done(given) if what == "checkpoint" else given["step"]) >= step:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    whole(self, given)

setattr(owner, name, full)
sys.exit(main(sys.argv[4:]))
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("what", "step", "size", "saved"), [("checkpoint", 10, 4096, 0), ("metrics", 15, 64, 10)]
)
def test_a_full_disk_ends_the_run_with_a_sentence(
    finished: Finished, corpus: Path, what: str, step: int, size: int, saved: int
):
    """From a step on files may not grow past a limit; what was saved before is whole and can go on."""
    command = options(corpus, "full")
    done = subprocess.run(
        [sys.executable, "-c", FULL, what, str(step), str(size), *command],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    # tensorstore may print a traceback of its own, when a failed write comes back to a closed event loop
    assert str(ROOT / "train") not in done.stderr
    # Its threads write on their own: the sentence may stand behind a piece of theirs on one line.
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


def test_no_checkpoint_that_can_be_read_is_a_sentence(finished: Finished, corpus: Path, capsys):
    command = copied_run(finished, corpus, "hurt")
    folder = folder_of(command) / "checkpoints"
    cut_short(folder)
    last = max(kept_steps(folder_of(command)))
    check_refused(capsys, [*command, "--resume"], folder / str(last), "--overwrite")
    shutil.rmtree(folder)
    check_refused(capsys, [*command, "--resume"], folder, "--overwrite")
