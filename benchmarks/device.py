"""The device of a benchmark, its memory, and the facts that are needed to repeat the run."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

Device = Any  # jax.Device, which type checkers see as a variable

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "GLIBC_TUNABLES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def choose(name: str | None) -> Device:
    """Return the first device of a platform, or JAX's default device.

    Raises:
        ValueError: this machine, or this installation of JAX, has no such device.
    """
    try:
        return jax.devices(name)[0]
    except RuntimeError as error:
        here = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(f"there is no device {name!r}; JAX sees {here}") from error


def about(device: Device) -> dict[str, Any]:
    """Return what the numbers were measured on and with, for every row."""
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "flags": {
            name: value
            for name, value in os.environ.items()
            if name in FLAGS or name.startswith(("JAX_", "MALLOC_"))
        },
        "revision": revision(),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    }


def installed(package: str) -> str | None:
    """Return a package's version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the processor's name, or an empty string if it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def revision() -> str | None:
    """Return the commit of this checkout, with `+` if files differ; None outside a checkout."""
    where = Path(__file__).parents[1]

    def git(*args: str) -> str:
        command = ["git", "-C", str(where), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def free_memory(device: Device) -> int | None:
    """Return the bytes that can still be allocated, or None if this is unknown."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))


def check_fits(what: str, needed: int, device: Device) -> None:
    """Refuse a run that needs more than the free memory, before it allocates anything.

    Raises:
        ValueError: naming the needed and the free memory, in GB.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        raise ValueError(
            f"{what} needs about {needed / 1e9:.1f} GB, but {device.device_kind} has {free / 1e9:.1f} GB free; "
            "choose a smaller --batch, --seq or size"
        )
