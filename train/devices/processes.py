"""Several processes that train one model (`jax.distributed`): join them, and check that they agree."""

import json
import secrets
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxformer.pretrained.atomic import replace_file
from train.runs import RunError, flat

OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")
"""Beginnings of JAX errors that this process alone causes."""


class Refused(RunError):  # noqa: N818
    """An error that all processes raise at the same point."""


class Group(NamedTuple):
    """The processes of a run, from the command line."""

    coordinator: str | None
    """HOST:PORT of process 0; auto: found from the cluster; None: this is the only process"""
    processes: int | None
    process: int | None
    timeout: int
    """seconds"""

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            ValueError: names the option.
        """
        if self.timeout < 1:
            raise ValueError(f"timeout={self.timeout} must be at least 1 second")
        numbers = (self.processes, self.process)
        if self.coordinator in (None, "auto"):
            if numbers != (None, None):
                raise ValueError(
                    "--processes and --process need --coordinator HOST:PORT, the address of process 0; give all three, "
                    "or --coordinator auto on a cluster that sets them"
                )
            return
        host, colon, port = self.coordinator.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(
                f"coordinator={self.coordinator!r} is not a HOST:PORT of process 0; write it as 10.0.0.1:1234"
            )
        if None in numbers:
            raise ValueError(
                f"--coordinator {self.coordinator} needs --processes, their number, and --process, the rank of this one"
            )
        if not 0 <= int(self.process or 0) < int(self.processes or 0):
            raise ValueError(
                f"process={self.process} must be at least 0 and below processes={self.processes}"
            )

    def join(self) -> None:
        """Join the group. JAX aborts this process if the group is not complete within the timeout.

        Raises:
            RunError: there is no cluster to find the group from, or the coordinator cannot be used.
        """
        # The preemption service would handle SIGTERM, which the run handles itself.
        jax.config.update("jax_enable_preemption_service", False)
        timeouts: dict[str, Any] = {
            "initialization_timeout": self.timeout,
            "heartbeat_timeout_seconds": self.timeout,
            "shutdown_timeout_seconds": self.timeout,
        }
        if self.coordinator == "auto":
            try:
                jax.distributed.initialize(**timeouts)
            except (ValueError, RuntimeError) as error:
                raise RunError(
                    "--coordinator auto: JAX finds no cluster here (SLURM, Kubernetes, Open MPI or cloud TPU; "
                    f"{error}); give --coordinator HOST:PORT, --processes and --process"
                ) from error
            return
        try:
            if self.process == 0:
                _check_free(int(str(self.coordinator).rpartition(":")[2]))
            jax.distributed.initialize(
                self.coordinator,
                self.processes,
                self.process,
                cluster_detection_method="deactivate",
                **timeouts,
            )
        except (RuntimeError, OSError) as error:
            raise RunError(
                f"process {self.process} cannot join at {self.coordinator} ({error}); if another program uses "
                "the port, choose another"
            ) from error


def _check_free(port: int) -> None:
    """Refuse a port that another program uses, where the coordinator of JAX may crash.

    Raises:
        OSError: the port is in use.
    """
    with socket.socket() as own:
        own.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # accept a port that was just closed
        own.bind(("", port))


def is_first() -> bool:
    """Return whether this is process 0, the only one that writes files and prints."""
    return jax.process_index() == 0


def of_each(value: Any) -> np.ndarray:
    """Gather one number or array of every process; all processes must call this at the same point."""
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))


def check_devices() -> None:
    """Refuse processes with different numbers of devices, which cannot form a mesh.

    Raises:
        Refused: names the number of devices of each process.
    """
    owners = [device.process_index for device in jax.devices()]
    numbers = [owners.count(process) for process in range(jax.process_count())]
    if len(set(numbers)) > 1:
        raise Refused(
            f"the processes have {', '.join(map(str, numbers))} devices; give each process the same number"
        )


def check_shared(folder: Path) -> None:
    """Refuse processes that do not share the folder of process 0.

    Raises:
        Refused: names the first process that does not see a file of process 0.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(secrets.token_bytes(8), np.uint8)
    content, path = of_each(own)[0].tobytes(), folder / ".shared"
    by_first(lambda: replace_file(path, content))
    seen = of_each(path.is_file() and path.read_bytes() == content)
    by_first(lambda: path.unlink(missing_ok=True))
    if not seen.all():
        raise Refused(
            f"process {seen.argmin()} does not see the folder {folder} of process 0; put --runs on a file "
            "system that all processes share"
        )


def check_agreement(about: dict[str, Any]) -> None:
    """Refuse processes with different options or data.

    Raises:
        Refused: names the first process that differs from process 0, and the fields.
    """
    own = flat(about)
    if len({*of_each(np.uint32(zlib.crc32(json.dumps([*own]).encode()))).tolist()}) > 1:
        raise Refused(
            "the processes run different versions of jaxformer; start all with the same version"
        )
    hashes = [zlib.crc32(json.dumps(value).encode()) for value in own.values()]
    differ = (each := of_each(np.array(hashes, np.uint32))) != each[0]
    if differ.any():
        number = int(differ.any(axis=1).argmax())
        names = [name for name, other in zip(own, differ[number], strict=True) if other]
        here = ", ".join(f"{name}={own[name]!r}" for name in names)
        raise Refused(
            f"process {number} has other options or data than process 0, which has {here}; start all processes "
            "with the same"
        )


def by_first(action: Callable[[], None]) -> None:
    """Run an action on process 0 while the others wait; if it fails, all processes raise.

    Raises:
        Refused: the action failed; process 0 reports the reason.
    """
    if jax.process_count() == 1:
        action()
        return
    failed = None
    if is_first():
        try:
            action()
        except (RunError, OSError, ValueError) as error:
            failed = error
    if multihost_utils.broadcast_one_to_all(np.bool_(failed is not None)):
        why = "process 0 failed and reports the reason" if failed is None else str(failed)
        raise Refused(why or type(failed).__name__) from failed


def on_host(array: Any) -> np.ndarray:
    """Return the full array on this host; all processes must call this at the same point."""
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def whole_on_first(array: Any) -> np.ndarray | None:
    """Return the full array on process 0, and None elsewhere."""
    numbers = on_host(array)
    return numbers if is_first() else None


def is_loss(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, may mean that another process was lost.

    In a run of several processes every error of JAX may mean that, except errors that this process causes itself, such
    as a lack of memory.
    """
    if error is None:
        return False
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
        return not str(error).startswith(OWN_FAULT)
    return is_loss(error.__cause__)
