"""The guard of a process that trains with others: it says how to go on where that process cannot.

JAX watches over the processes of a program: when one falls silent, it aborts the others, in the middle of whatever
they do. So each runs under a guard, the process that was started, which turns that into a sentence and an exit status.
What XLA and NCCL write goes where this process's own output goes.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

import jax
from jax.experimental import multihost_utils

from train.devices.processes import Group

LOST = 75
"""The exit status where another process, or the coordinator, is gone: the same command with --resume goes on."""
GUARDED = "JAXFORMER_GUARDED"
"""The environment variable that tells a process that it has a guard."""


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
    """Whether this process has a guard; if so, it ends when the guard does."""
    if GUARDED not in os.environ:
        return False

    def end_with_guard() -> None:
        os.read(0, 1)  # the guard holds the other end as long as it lives
        os._exit(LOST)

    threading.Thread(target=end_with_guard, daemon=True).start()
    return True


def guard(args: Sequence[str], group: Group, resume: str) -> int:
    """Run this same command in a process of its own; its exit status, or LOST and a sentence.

    Args:
        args: of the command line.
        group: the processes.
        resume: the command that goes on.
    """
    worker = subprocess.Popen(  # noqa: S603  this very command
        [sys.executable, "-m", "train", *args],
        env=os.environ | {GUARDED: "yes"},
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C comes to the guard alone, which passes it on
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: worker.send_signal(number))
    status = worker.wait()
    if status not in (LOST, -signal.SIGABRT):
        if status < 0:
            print(f"error: this process was ended by signal {-status}", file=sys.stderr)
        return 128 - status if status < 0 else status
    print(
        f"error: another process of this run is gone, or did not answer within {group.patience} s (--patience); its "
        f"own output says why. Start them all again, with the coordinator's address (--coordinator "
        f"{group.coordinator}), and where a checkpoint was written go on from it with --resume: {resume}",
        file=sys.stderr,
    )
    return LOST
