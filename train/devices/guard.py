"""The guard of a process that trains with others: it says why that ended, where it cannot say so itself.

JAX watches over the processes of a program: when one falls silent, it aborts the others, in the middle of whatever
they do. So each runs under a guard, the process that was started, which says in a sentence what happened and gives
it an exit status of its own.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from train.devices.processes import Group

LOST = 75
"""The exit status where another process, or the coordinator, is gone: the same command with --resume goes on."""
GUARDED = "JAXFORMER_GUARDED_LOG"
"""The environment variable that tells a process that it has a guard, and where to write what is not ours."""


def leave(status: int, *, together: bool) -> None:
    """End this guarded process at once: JAX would wait for the others.

    Args:
        status: its exit status.
        together: all leave at this point; none before the others have said why.
    """
    if together and jax.process_count() > 1:
        with contextlib.suppress(Exception):  # one that is gone already has said why
            multihost_utils.sync_global_devices("leave")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def guarded() -> bool:
    """Whether this process has a guard; the first call also sends to the log what is not said in Python.

    The libraries below JAX write to the standard streams by themselves.
    """
    log = os.environ.get(GUARDED)
    if log is None:
        return False
    with Path(log).open("ab") as file:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            how = {"encoding": stream.encoding, "errors": stream.errors}
            own = os.fdopen(os.dup(number), "w", buffering=1, **how)
            setattr(sys, "stdout" if number == 1 else "stderr", own)
            os.dup2(file.fileno(), number)
    threading.Thread(target=_end_with_guard, daemon=True).start()
    return True


def _end_with_guard() -> None:
    """The guard holds the other end of standard input as long as it lives."""
    os.read(0, 1)
    os._exit(LOST)


def guard(args: Sequence[str], group: Group, resume: str) -> int:
    """Run this same command in a process of its own, and say why it ended if it cannot itself; its exit status.

    Args:
        args: of the command line.
        group: the processes.
        resume: the command that goes on.
    """
    handle, log = tempfile.mkstemp(prefix="jaxformer-", suffix=".log")
    os.close(handle)
    worker = subprocess.Popen(  # noqa: S603  this very command
        [sys.executable, "-m", "train", *args],
        env=os.environ | {GUARDED: log},
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C comes to the guard alone, which passes it on
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: worker.send_signal(number))
    status = worker.wait()
    said = Path(log).read_text(encoding="utf-8", errors="replace")
    if status != LOST and not (status == -signal.SIGABRT and "coordination" in said):
        Path(log).unlink()
        if status < 0:
            print(f"error: this process was ended by signal {-status}", file=sys.stderr)
        return 128 - status if status < 0 else status
    if "RegisterTask" in said:
        number = "" if group.processes is None else f"{group.processes} "
        why = (
            f"not all of the {number}processes came together within {group.patience} s (--patience); start them "
            f"all, with the address of process 0 (--coordinator {group.coordinator})"
        )
    else:
        why = (
            f"another process of this run is gone, or silent for {group.patience} s (--patience); "
            f"its own output says why. Start them all again, each with its command and --resume: {resume}"
        )
    print(f"error: {why} (what JAX says: {log})", file=sys.stderr)
    return LOST
