"""Several processes that train one model: how they find each other and agree. JAX joins them (`jax.distributed`)."""

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
"""How errors of JAX begin that no other process is the reason of."""


class Refused(RunError):  # noqa: N818  says what it is
    """What all processes refuse, at the same point."""


class Group(NamedTuple):
    """The processes of a run, as the command line tells."""

    coordinator: str | None
    """host and port of process 0; auto: as the cluster says; None: there is but this process"""
    processes: int | None
    process: int | None
    patience: int
    """seconds"""

    def check(self) -> None:
        """Refuse what describes no group.

        Raises:
            ValueError: naming the option.
        """
        if self.patience < 1:
            raise ValueError(f"patience={self.patience} must be at least 1 second")
        numbers = (self.processes, self.process)
        if self.coordinator in (None, "auto"):
            if numbers != (None, None):
                raise ValueError(
                    "--processes and --process go with --coordinator HOST:PORT, process 0's; give all three, "
                    "or --coordinator auto where a cluster tells them"
                )
            return
        host, colon, port = self.coordinator.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(
                f"coordinator={self.coordinator!r} is no HOST:PORT of process 0, as 10.0.0.1:1234"
            )
        if None in numbers:
            raise ValueError(
                f"--coordinator {self.coordinator} needs --processes, their number, and --process, this one's"
            )
        if not 0 <= int(self.process or 0) < int(self.processes or 0):
            raise ValueError(
                f"process={self.process} of processes={self.processes}: they are numbered from 0, "
                "and process is below processes"
            )

    def join(self) -> None:
        """Become one of the group. Where it is not complete in time, JAX aborts this process.

        Raises:
            RunError: no cluster tells who belongs to the group.
        """
        # It would take SIGTERM for itself; a run heeds it by its own means.
        jax.config.update("jax_enable_preemption_service", False)
        how: dict[str, Any] = {
            "initialization_timeout": self.patience,
            "heartbeat_timeout_seconds": self.patience,
            "shutdown_timeout_seconds": self.patience,
        }
        if self.coordinator == "auto":
            try:
                jax.distributed.initialize(**how)
            except (ValueError, RuntimeError) as error:  # of a cluster without its library
                raise RunError(
                    "--coordinator auto: JAX finds no cluster here (SLURM, Kubernetes, Open MPI, cloud TPU) that "
                    f"tells the processes of each other ({error}); give HOST:PORT, --processes and --process"
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
                **how,
            )
        except (RuntimeError, OSError) as error:
            raise RunError(
                f"process {self.process} cannot take part at {self.coordinator} ({error}); is the port "
                "another program's? Choose another"
            ) from error


def _check_free(port: int) -> None:
    """Refuse a port that another program listens at: JAX's coordinator may crash there.

    Raises:
        OSError: it is taken.
    """
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one just left is free
        own.bind(("", port))


def is_first() -> bool:
    """Whether this process speaks for all: it writes, and the others keep quiet."""
    return jax.process_index() == 0


def of_each(value: Any) -> np.ndarray:
    """Every process's number, or array of one shape; all must call this at the same point."""
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))


def check_devices() -> None:
    """Refuse processes with different numbers of devices, which no mesh can be made of.

    Raises:
        Refused: saying how many each has.
    """
    owners = [device.process_index for device in jax.devices()]
    numbers = [owners.count(process) for process in range(jax.process_count())]
    if len(set(numbers)) > 1:
        raise Refused(
            f"the processes have {', '.join(map(str, numbers))} devices; give each the same number"
        )


def check_shared(folder: Path) -> None:
    """Refuse processes that do not see what the first one writes into a folder.

    Raises:
        Refused: naming the first that does not.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(secrets.token_bytes(8), np.uint8)
    word, place = of_each(own)[0].tobytes(), folder / ".shared"
    by_first(lambda: replace_file(place, word))
    seen = of_each(place.is_file() and place.read_bytes() == word)
    by_first(lambda: place.unlink(missing_ok=True))
    if not seen.all():
        raise Refused(
            f"process {seen.argmin()} does not see {folder} of process 0; all need one folder to write a "
            "checkpoint into (--runs)"
        )


def check_agreement(about: dict[str, Any]) -> None:
    """Refuse processes that were started to do different things.

    Raises:
        Refused: naming the first that differs from process 0, and in what.
    """
    own = flat(about)
    if len({*of_each(np.uint32(zlib.crc32(json.dumps([*own]).encode()))).tolist()}) > 1:
        raise Refused("the processes run different versions of jaxformer; start all with the same")
    hashes = [zlib.crc32(json.dumps(value).encode()) for value in own.values()]
    differ = (each := of_each(np.array(hashes, np.uint32))) != each[0]
    if differ.any():
        number = int(differ.any(axis=1).argmax())
        names = [name for name, other in zip(own, differ[number], strict=True) if other]
        here = ", ".join(f"{name}={own[name]!r}" for name in names)
        raise Refused(
            f"process {number} has other options or other data than process 0, which has {here}; start all with "
            "the same"
        )


def by_first(action: Callable[[], None]) -> None:
    """What process 0 does for all, while the others wait; all fail where it does.

    Raises:
        Refused: it failed; process 0 says why.
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
        why = "process 0 failed, and says why" if failed is None else str(failed)
        raise Refused(why or type(failed).__name__) from failed


def on_host(array: Any) -> np.ndarray:
    """An array's numbers on this host; all processes must call this at the same point."""
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def whole_on_first(array: Any) -> np.ndarray | None:
    """The same, for process 0 alone to hold."""
    numbers = on_host(array)
    return numbers if is_first() else None


def is_loss(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, may mean that another process is gone: JAX's own, of a run with others.

    Not where this process alone is the reason, as by its memory: then it is the others that lose it.
    """
    if error is None:
        return False
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
        return not str(error).startswith(OWN_FAULT)
    return is_loss(error.__cause__)
