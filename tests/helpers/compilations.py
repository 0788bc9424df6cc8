"""Count what XLA compiles, and the memory mappings of this process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """List the programs that JAX has to get from XLA, each a miss of its cache in memory; a hit lists nothing."""
    found: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def mappings() -> int:
    """The memory mappings of this process, of which Linux grants 65,530. Each program that is kept needs some."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0
