"""Start the processes of a run on the loopback interface, and wait for them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.helpers.runs import ROOT, kept_steps

# A toy task, whose runs end without a sample, so there is less to compile.
SIZE = ["--config.d-model", "16", "--batch", "8", "--corpus", "brackets", "--context", "13"]
TIMEOUT = 20


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def start(program: list[str], devices: int = 1, **environment: str) -> subprocess.Popen[str]:
    """Start a process with this number of devices."""
    # The last of two equal flags counts.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *program], cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_all(command: list[str], number: int, each: int = 1, *own: list[str]) -> list[Any]:
    """Start the processes of a run; `own` has extra options for each."""
    group = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(number)]
    group += ["--timeout", str(TIMEOUT), "--process"]
    extra = own or [[]] * number
    return [
        start(["-m", "train", *command, *group, str(i), *extra[i]], each) for i in range(number)
    ]


def wait_for_step_10(processes: list[Any], folder: Path) -> None:
    """Wait for the checkpoint of step 10, while all processes live."""
    deadline = time.monotonic() + 150
    while 10 not in kept_steps(folder):
        assert all(process.poll() is None for process in processes), ended(processes)
        assert time.monotonic() < deadline, ended(processes, 1)
        time.sleep(0.02)


def ended(processes: list[Any], seconds: float = 180) -> list[tuple[int, str, str]]:
    """Wait for the processes; return exit status, output and errors of each."""
    deadline = time.monotonic() + seconds
    results = []
    for process in processes:
        try:
            texts = process.communicate(timeout=max(deadline - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            for each in processes:
                each.kill()
            raise
        results.append((process.returncode, *texts))
    return results


def own_lines(output: str) -> list[str]:
    """Return the lines that are not from Gloo, which connects processes on CPU."""
    return [line for line in output.splitlines() if not line.startswith("[Gloo]")]
