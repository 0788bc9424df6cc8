"""Whole runs for the tests: a tiny one, its folder, and what makes two runs the same."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from tests.helpers.errors import check_names
from train import loop
from train.__main__ import main, parse
from train.checkpoints import Checkpoints
from train.data.batches import Batch, draw_windows, host_starts
from train.metrics import read_metrics
from train.run import fresh_state
from train.start import open_recipe

ROOT = Path(__file__).parents[2]
TINY = [
    "--config.n-layers", "1", "--config.d-model", "16", "--config.n-heads", "2", "--config.d-head", "8",
    "--config.d-mlp", "32", "--context", "12", "--batch", "4", "--chunk", "5", "--validate-every", "10",
    "--optimizer.warmup", "5",
]  # fmt: skip


def write_corpus(folder: Path) -> Path:
    """A text to train on, in this folder."""
    line = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
    path = folder / "notes.txt"
    path.write_text(line * 40)
    return path


def options(corpus: Path, name: str, steps: int = 40, *extra: str) -> list[str]:
    """The command line of a tiny run on this text."""
    where = ["--corpus", str(corpus), "--runs", str(corpus.parent / "runs"), "--name", name]
    return ["seed", *TINY, *where, "--steps", str(steps), *extra]


def folder_of(command: list[str]) -> Path:
    """Where a command's run goes."""
    parsed = parse(command)
    return parsed.runs / parsed.name


class Finished(NamedTuple):
    """A whole run that many tests read and none changes."""

    command: list[str]
    """`options` without extra ones"""
    said: str
    """what it printed"""


def copied_run(finished: Finished, corpus: Path, name: str) -> list[str]:
    """Copy the finished run to `name`, with `corpus` as its text, and return its command."""
    command = options(corpus, name)
    folder = folder_of(command)
    shutil.copytree(folder_of(finished.command), folder)
    path = folder / "run.json"
    about = json.loads(path.read_text())
    about["recipe"]["corpus"] = str(corpus)
    path.write_text(json.dumps(about))
    return command


def numbers(folder: Path) -> list[dict[str, Any]]:
    """Metrics without the clock's readings."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(folder)]


def kept_steps(folder: Path) -> set[int]:
    """Of the whole checkpoints."""
    return {int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()}


def final_state(command: list[str]):
    """The last checkpoint of a command's run."""
    recipe, config, _, first, _ = open_recipe(parse(command).recipe)
    checkpoints = Checkpoints(folder_of(command))
    try:
        return checkpoints.restore(fresh_state(recipe, config, first))
    finally:
        checkpoints.close()


def assert_same_run(one: list[str], other: list[str]) -> None:
    """Metrics but for the clock, states and models, bit for bit."""
    folders = [folder_of(command) for command in (one, other)]
    assert numbers(folders[0]) == numbers(folders[1])
    states = [final_state(command) for command in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    models = [
        {p.relative_to(f): p.read_bytes() for p in f.glob("model*/**/*.safetensors")}
        for f in folders
    ]
    assert models[0]
    assert models[0] == models[1]


def check_refused(capsys: Any, command: list[str], *named: object) -> str:
    """The one line that a command says in place of doing something, and which names these fields and values."""
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    check_names(error, *named)
    return error


def batches_of(tokens: np.ndarray, steps: np.ndarray, batch: int, context: int) -> Batch:
    """The batches of some steps, all of whose targets count."""
    starts = host_starts(jax.random.key(0), steps, len(tokens) - context, batch)
    windows = draw_windows(tokens, starts, context)
    return Batch(windows, np.ones(windows[..., 1:].shape, bool))


def start_process(command: list[str]) -> subprocess.Popen[str]:
    """The run in a process of its own, that can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "train", *command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_until(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """While the process lives, and for two minutes at most."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Stops:
    """Calls through to a function, but to another from the nth time on."""

    def __init__(self, function: Any, nth: int, instead: Any):
        self.function, self.left, self.instead = function, nth, instead

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        return (self.function if self.left else self.instead)(*args, **options)


def stop_at(command: list[str], nth: int) -> None:
    """The run, asked to stop as it draws batches for the nth time."""
    draw = loop.draw

    def asked(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return draw(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw", Stops(draw, nth, asked))
        assert main(command) == 143
