"""A guard process for each training process of a group: it reports the loss of another process.

When a process of a group stops answering, JAX aborts all others at whatever point they are. The command therefore
starts its training in a child process and waits as its guard, which turns such an abort into an error message and an
exit status. The output of the child, with that of XLA and NCCL, goes to the output of the guard.
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
"""The exit status after another process or the coordinator was lost; the command with --resume continues."""
GUARDED = "JAXFORMER_GUARDED"
"""The environment variable that tells a process that it has a guard."""


def leave(status: int, *, together: bool) -> None:
    """Exit this guarded process at once; a normal exit makes JAX wait for the others.

    Args:
        status: its exit status.
        together: all processes leave at this point; wait until they have printed their errors.
    """
    if together and jax.process_count() > 1:
        with contextlib.suppress(Exception):  # a process that is gone has printed its error
            multihost_utils.sync_global_devices("leave")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def guarded() -> bool:
    """Return whether this process has a guard. If it has, exit when the guard exits."""
    if GUARDED not in os.environ:
        return False

    def end_with_guard() -> None:
        os.read(0, 1)  # returns when the guard, which holds the other end, exits
        os._exit(LOST)

    threading.Thread(target=end_with_guard, daemon=True).start()
    return True


def guard(args: Sequence[str], group: Group, resume: str) -> int:
    """Run this command in a child process; return its exit status, or print an error and return LOST.

    Args:
        args: of the command line.
        group: the processes.
        resume: the command that continues the run.
    """
    worker = subprocess.Popen(  # noqa: S603  the same program
        [sys.executable, "-m", "train", *args],
        env=os.environ | {GUARDED: "yes"},
        stdin=subprocess.PIPE,
        start_new_session=True,  # only the guard receives Ctrl-C, and passes it on
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: worker.send_signal(number))
    status = worker.wait()
    if status not in (LOST, -signal.SIGABRT):
        if status < 0:
            print(f"error: this process was ended by signal {-status}", file=sys.stderr)
        return 128 - status if status < 0 else status
    print(
        f"error: another process of this run exited, or did not answer within {group.timeout} s (--timeout); see its "
        f"output for the reason. Start all processes again with the same --coordinator {group.coordinator}; if a "
        f"checkpoint was written, add --resume: {resume}",
        file=sys.stderr,
    )
    return LOST
