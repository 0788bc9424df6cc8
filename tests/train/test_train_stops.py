"""A run that is stopped at any moment resumes with the same numbers."""

import shlex
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.errors import check_names, raises
from tests.helpers.runs import (
    Finished,
    Stops,
    assert_same_run,
    copied_run,
    final_state,
    folder_of,
    kept_steps,
    numbers,
    options,
    start_process,
    stop_at,
    wait_until,
)
from train import loop
from train.__main__ import main
from train.metrics import Line, Metrics, read_metrics
from train.step import steps_done

pytestmark = pytest.mark.usefixtures("standard_promotion")


def being_saved(folder: Path) -> bool:
    """Return whether a checkpoint is being written."""
    return any(not path.name.isdigit() for path in (folder / "checkpoints").glob("*"))


def last_saved(folder: Path) -> int:
    return max(kept_steps(folder), default=-1)


@pytest.mark.processes
def test_a_run_killed_at_any_moment_is_the_run_that_was_never_killed(corpus: Path):
    """At random moments, and twice while a checkpoint is written."""
    whole, killed = (options(corpus, name, 400, "--keep", "2") for name in ("whole", "killed"))
    assert main(whole) == 0
    folder = folder_of(killed)
    moments, command = np.random.default_rng(0), killed
    for aimed in (False, True, False, True):
        before = last_saved(folder)
        process = start_process(command)
        wait_until(process, lambda before=before: last_saved(folder) > before)
        if aimed:
            wait_until(process, lambda: being_saved(folder))
        else:
            time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        command = [*killed, "--resume"]
    assert read_metrics(folder)[-1]["step"] < 400
    assert main(command) == 0
    assert_same_run(whole, killed)
    assert kept_steps(folder) == kept_steps(folder_of(whole))
    assert not being_saved(folder)


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_and_prints_how_to_resume(corpus: Path, number: signal.Signals):
    command = options(corpus, "stopped", 4000)
    folder = folder_of(command)
    process = start_process(command)
    wait_until(process, lambda: last_saved(folder) >= 10)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    check_names(out, folder)
    said = out.replace("\n", " ").rpartition("python -m train ")[2]
    assert shlex.split(said) == [*command, "--resume"]
    step = steps_done(final_state(command))
    check_names(out, f"step {step}")
    assert 10 <= step < 4000
    assert step == read_metrics(folder)[-1]["step"]


def interrupt(*args: object, **options: object) -> None:
    """Act like a second Ctrl-C, which saves nothing."""
    raise KeyboardInterrupt


def test_a_run_stopped_between_validations_resumes_there(finished: Finished, corpus: Path):
    command = options(corpus, "stopped")
    stop_at(command, 3)
    assert last_saved(folder_of(command)) == 15
    assert main([*command, "--resume"]) == 0
    assert_same_run(finished.command, command)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["evaluating", "keeping the model", "writing the metrics"])
def test_a_run_killed_before_its_validation_validates_on_resume(
    finished: Finished, corpus: Path, where: str
):
    """The state has been saved before the validation."""
    command = options(corpus, "killed")
    make, write = loop.make_evaluation, Metrics.write

    def written(self: Metrics, line: Line) -> None:
        (interrupt if line["step"] == 20 and "validation_loss" in line else write)(self, line)

    with pytest.MonkeyPatch.context() as patch:
        if where == "evaluating":
            patch.setattr(loop, "make_evaluation", lambda *args: Stops(make(*args), 3, interrupt))
        elif where == "keeping the model":
            patch.setattr(loop, "save_models", Stops(loop.save_models, 3, interrupt))
        else:
            patch.setattr(Metrics, "write", written)
        assert main(command) == 130
    folder = folder_of(command)
    assert last_saved(folder) == 20
    assert 20 not in {x["step"] for x in read_metrics(folder) if "validation_loss" in x}
    assert main([*command, "--resume"]) == 0
    assert_same_run(finished.command, command)


@pytest.mark.slow
def test_the_last_checkpoints_and_the_best_are_kept(corpus: Path, monkeypatch):
    """With invented losses, of which the second is the best."""
    command = options(corpus, "kept", 60, "--keep", "3")
    make = loop.make_evaluation
    losses = iter([3.0, 1.0, 2.0, 2.0, 1.5, 1.0, 2.0])

    def evaluation(*args: Any) -> Any:
        evaluate = make(*args)
        return lambda state: evaluate(state) | {"validation_loss": next(losses)}

    monkeypatch.setattr(loop, "make_evaluation", evaluation)
    assert main(command) == 0
    assert kept_steps(folder_of(command)) == {10, 40, 50, 60}


@pytest.mark.slow
def test_an_unfinished_checkpoint_is_ignored(finished: Finished, corpus: Path):
    """A truncated checkpoint under orbax's temporary name, and a truncated line of metrics."""
    command = copied_run(finished, corpus, "cut")
    folder = folder_of(command)
    before = numbers(folder)
    last = last_saved(folder)
    whole = folder / "checkpoints" / str(last)
    whole.rename(whole.with_suffix(".orbax-checkpoint-tmp"))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    assert main([*command, "--resume"]) == 0
    assert numbers(folder) == before
    assert last_saved(folder) == last
    assert not being_saved(folder)


def test_an_incomplete_last_line_is_left_out(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "lo')
    assert read_metrics(tmp_path) == [{"step": 5, "loss": 1.0}]
    Metrics(tmp_path, 5).write({"step": 10, "loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)] == [5, 10]


@pytest.mark.parametrize("line", ['{"step": 7, "lo}', '{"loss": 1.0}', "[1]", "\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str):
    text = f'{{"step": 5, "loss": 1.0}}\n{line}\n{{"step": 10, "loss": 0.5}}\n'
    (tmp_path / "metrics.jsonl").write_text(text, encoding="latin-1")
    with raises(ValueError, "line 2", tmp_path / "metrics.jsonl"):
        read_metrics(tmp_path)
