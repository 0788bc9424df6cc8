"""Several processes on the loopback interface: one run with the numbers of one process, and errors for lost ones."""

import errno
import signal
import socket
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.helpers.errors import check_names
from tests.helpers.runs import folder_of, kept_steps, numbers, options
from tests.train.processes import (
    SIZE,
    TIMEOUT,
    ended,
    free_port,
    own_lines,
    start,
    start_all,
    wait_for_step_10,
)
from train.__main__ import main
from train.devices.guard import LOST
from train.devices.processes import is_loss
from train.metrics import read_metrics
from train.runs import RunError

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("standard_promotion")]
TEXT = ["--config.d-model", "16", "--batch", "8", "--tokenizer", "bytes"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a child through /proc")
def test_four_processes_resume_a_run_of_two_with_the_numbers_of_one(corpus: Path):
    # The runs need the same --steps, which the schedule depends on, and enough of them to kill one in the middle.
    size = [*SIZE, "--chunk", "1", "--validate-every", "10"]
    whole = options(corpus, "whole", 30, *size)
    shared = options(corpus, "shared", 30, *size, "--mesh", "data=2,fsdp=2")
    folder = folder_of(shared)
    pair = start_all(shared, 2, 2)
    wait_for_step_10(pair, folder)
    guard = pair[1].pid
    worker, *_ = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
    pair[1].kill()  # the guard; its worker must exit too
    begun = time.monotonic()
    (status, out, error), (killed, quiet, _) = ended(pair, TIMEOUT + 30)
    assert time.monotonic() - begun < TIMEOUT + 15
    assert (status, killed) == (LOST, -signal.SIGKILL), error
    stat = Path(f"/proc/{worker}/stat")  # a zombie keeps its number
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
    last = error.splitlines()[-1]
    assert last.startswith("error: ")
    check_names(last, "--timeout", "--resume")
    assert "validation loss" in out
    assert own_lines(quiet) == []
    saved = max(kept_steps(folder))
    assert saved < 30

    four = ended(start_all([*shared, "--resume"], 4))
    assert [status for status, _, _ in four] == [0, 0, 0, 0], four
    check_names(four[0][1], f"step {saved}")
    assert all(own_lines(out) == [] for _, out, _ in four[1:])
    assert main(whole) == 0
    for line, own in zip(numbers(folder), numbers(folder_of(whole)), strict=True):
        assert line["step"] == own["step"]
        for name in line.keys() & {"loss", "validation_loss", "gradient_norm"}:
            assert line[name] == pytest.approx(own[name], rel=1e-5)
    parts = (folder / "checkpoints" / "30" / "state").glob(
        "ocdbt.process_*"
    )  # each process wrote its own part
    assert {path.name for path in parts} == {f"ocdbt.process_{i}" for i in range(4)}


def test_processes_with_different_numbers_of_devices_are_refused(corpus: Path):
    command = options(corpus, "unequal", 30, *SIZE, "--mesh", "data=3")
    group = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process"]
    pair = [start(["-m", "train", *command, *group, str(i)], i + 1) for i in (0, 1)]
    (status, _, error), _ = ended(pair)
    assert status == 1
    check_names(error, "1, 2 devices")


def test_processes_with_different_options_are_refused(corpus: Path):
    command = options(corpus, "differ", 30, *SIZE, "--mesh", "data=2")
    results = ended(start_all(command, 2, 1, [], ["--optimizer.beta1", "0.8", "--resume"]))
    assert [status for status, _, _ in results] == [1, 1], results
    error = results[0][2].splitlines()[-1]
    assert error.startswith("error: ")
    check_names(error, "optimizer.beta1=0.9", "resume=False", "process 0", "process 1")
    assert "error: " not in results[1][2]
    assert not folder_of(command).exists()


def test_a_missing_coordinator_ends_the_process_after_the_timeout(corpus: Path):
    command = options(corpus, "alone", 30, *SIZE, "--mesh", "data=2")
    where = f"127.0.0.1:{free_port()}"
    group = ["--coordinator", where, "--processes", "2", "--process", "1", "--timeout", "2"]
    [(status, out, error)] = ended([start(["-m", "train", *command, *group])])
    assert status == LOST
    assert out == ""
    last = error.splitlines()[-1]
    assert last.startswith("error: ")
    check_names(last, "2 s", "--timeout", f"--coordinator {where}")


ROWS = """
import sys
import jax, numpy as np
from pathlib import Path
from rich.console import Console
from train.data import dataset as data
from train.__main__ import parse
from train.devices.layout import Layout, lay_out
from train.run import Run, draw

where, process, *command = sys.argv[1:]
jax.distributed.initialize(where, 2, int(process), cluster_detection_method="deactivate")
read = []
windows = data.draw_windows
recipe = parse(command).recipe
opened = data.open_data(recipe)
data.draw_windows = lambda tokens, starts, context: read.append(starts.shape) or windows(tokens, starts, context)
config = recipe.config.for_tokenizer(opened.tokenizer)
run = Run(recipe, config, opened, Path(), Console(), layout=lay_out("data=2", ()))
batch = draw(run, np.arange(3)).windows
assert read == [(3, 4)], read
whole = np.asarray(opened.draw.__call__(jax.random.split(jax.random.key(recipe.seed), 3)[1], np.arange(3)).windows)
[part] = batch.addressable_shards
np.testing.assert_array_equal(part.data, whole[:, 4 * int(process):4 * int(process) + 4])
print("half of the rows")
"""


def test_each_process_reads_only_its_own_rows(corpus: Path):
    command = options(corpus, "rows", 30, *TEXT)
    where = f"127.0.0.1:{free_port()}"
    results = ended([start(["-c", ROWS, where, str(i), *command]) for i in range(2)])
    for status, out, error in results:
        assert status == 0, error
        assert out.endswith("half of the rows\n")


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (("--coordinator", "here"), ("coordinator='here'", "HOST:PORT")),
        (("--coordinator", "a:1", "--processes", "2"), ("--coordinator a:1", "--processes", "--process")),
        (("--coordinator", "a:1", "--processes", "2", "--process", "2"), ("process=2", "processes=2")),
        (("--processes", "2"), ("--processes", "--process", "--coordinator")),
        (("--coordinator", "auto", "--process", "1"), ("--processes", "--process", "--coordinator")),
        (("--timeout", "0"), ("timeout=0", 1)),
    ],
)  # fmt: skip
def test_contradicting_process_options_are_refused(
    corpus: Path, capsys: Any, extra: Any, named: Any
):
    with pytest.raises(SystemExit):
        main(options(corpus, "refused", 10, *extra))
    said = capsys.readouterr().err.replace("│", " ")
    check_names(" ".join(said.split()), *named)


def slurm(process: int, port: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process), "SLURM_LOCALID": str(process), "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip


def open_mpi(process: int, port: int) -> dict[str, str]:
    return {
        "OMPI_MCA_orte_hnp_uri": f"{port}.0;tcp://127.0.0.1:{port}", "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(process), "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
    }  # fmt: skip


@pytest.mark.parametrize("cluster", [slurm, open_mpi])
def test_processes_under_a_cluster_s_launcher_find_each_other(corpus: Path, cluster: Any):
    """Their disagreement about --seed shows that they communicate."""
    command = options(corpus, "cluster", 30, *SIZE, "--mesh", "data=2", "--coordinator", "auto")
    port = free_port()
    command = ["-m", "train", *command, "--seed"]
    pair = [start([*command, str(i)], **cluster(i, port)) for i in (0, 1)]
    results = ended(pair)
    assert [status for status, _, _ in results] == [1, 1], results
    check_names(results[0][2], "seed=0", "process 0", "process 1")


def test_coordinator_auto_is_refused_without_a_cluster(corpus: Path):
    command = options(corpus, "auto", 30, "--coordinator", "auto")
    [(status, _, error)] = ended([start(["-m", "train", *command])])
    assert status == 1
    assert error.startswith("error: ")
    check_names(error, "--coordinator auto", "HOST:PORT", "--processes", "--process")


def test_a_folder_that_is_not_shared_is_refused(corpus: Path):
    """The folder has words of JAX's message for a lost process, but no process is lost."""
    places = [corpus.parent / f"heartbeat coordination {i}" for i in (0, 1)]
    command = options(corpus, "NCCL", 30, *SIZE, "--mesh", "data=2")
    results = ended(start_all(command, 2, 1, *(["--runs", str(place)] for place in places)))
    assert [status for status, _, _ in results] == [1, 1], results
    check_names(results[0][2], "process 1", places[0] / "NCCL", "process 0", "--runs")


def test_a_port_that_is_taken_is_refused(corpus: Path):
    command = options(corpus, "taken", 30, *SIZE, "--mesh", "data=3")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        where = f"127.0.0.1:{place.getsockname()[1]}"
        group = ["--coordinator", where, "--processes", "2", "--process", "0", "--timeout", "5"]
        [(status, _, error)] = ended([start(["-m", "train", *command, *group])])
    assert (status, error.startswith("error: ")) == (1, True), error
    check_names(error, "process 0", where, f"Errno {errno.EADDRINUSE}")


def test_a_signal_to_one_stops_all_with_the_state_saved(corpus: Path):
    command = options(corpus, "signal", 4000, *SIZE, "--mesh", "data=2")
    pair = start_all(command, 2)
    wait_for_step_10(pair, folder_of(command))
    pair[1].send_signal(signal.SIGTERM)
    (status, out, _), (other, quiet, _) = ended(pair)
    assert (status, other) == (143, 143)
    check_names(out, folder_of(command), "--resume")
    assert own_lines(quiet) == []
    assert read_metrics(folder_of(command))[-1]["step"] in kept_steps(folder_of(command))


def test_jax_errors_mean_a_lost_process_unless_this_one_causes_them(monkeypatch):
    gone, own = map(
        jax.errors.JaxRuntimeError, ("UNKNOWN: Gloo closed", "RESOURCE_EXHAUSTED: 9 GB")
    )
    wrapped = RunError("cannot be written")
    wrapped.__cause__ = gone
    found = [is_loss(error) for error in (gone, wrapped, own, ValueError("UNKNOWN"), None)]
    assert found == [False] * 5  # one process
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    found = [is_loss(error) for error in (gone, wrapped, own, ValueError("UNKNOWN"), None)]
    assert found == [True, True, False, False, False]
