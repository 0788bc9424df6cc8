"""How fast a text comes: the wait for the first token apart from the rest, and compiling apart from decoding."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

COMPILING = "/jax/core/compile/"
"""How the events begin by which JAX says that it traced, lowered or compiled something."""


class Piece(NamedTuple):
    """So many tokens that came together."""

    tokens: int
    seconds: float
    compiled: bool  # something was, while they were waited for


def timed(
    pieces: Iterable[Int[np.ndarray, " _"]], noted: list[Piece]
) -> Iterator[Int[np.ndarray, " _"]]:
    """The same pieces; how long each was waited for is noted."""
    waiting = iter(pieces)
    while True:
        with _compilations() as compiled:
            start = time.perf_counter()
            piece = next(waiting, None)
            seconds = time.perf_counter() - start
        if piece is None:
            return
        noted.append(Piece(len(piece), seconds, bool(compiled)))
        yield piece


def pace(noted: list[Piece]) -> str:
    """How long the first piece took, and the speed of those after it for which nothing had to be compiled.

    >>> pace([Piece(1, 1.9, True), Piece(16, 0.8, True), Piece(16, 0.01, False)])
    '33 tokens, 1,600 tokens/s after the first, which took 1.9 s (compiling included)'
    """
    tokens = sum(piece.tokens for piece in noted)
    counted = f"{tokens:,} token{'s' if tokens > 1 else ''}"
    first = f"took {noted[0].seconds:.2g} s{' (compiling included)' if noted[0].compiled else ''}"
    steady = [piece for piece in noted[1:] if not piece.compiled]
    if not steady:
        return f"{counted}; the first {first}"
    speed = sum(piece.tokens for piece in steady) / sum(piece.seconds for piece in steady)
    return f"{counted}, {speed:,.0f} tokens/s after the first, which {first}"


@contextlib.contextmanager
def _compilations() -> Iterator[list[str]]:
    """What JAX traces, lowers or compiles meanwhile."""
    events: list[str] = []

    def note(event: str, duration_secs: float, **_: Any) -> None:
        del duration_secs
        if event.startswith(COMPILING):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
