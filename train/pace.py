"""How fast a text is generated."""

import statistics
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Piece(NamedTuple):
    """A number of tokens that arrived together, and the seconds that they took."""

    tokens: int
    seconds: float


def timed(
    pieces: Iterable[Int[np.ndarray, " _"]], timings: list[Piece]
) -> Iterator[Int[np.ndarray, " _"]]:
    """Yield the pieces, and append the time that each took to `timings`."""
    start = time.perf_counter()
    for piece in pieces:
        timings.append(Piece(len(piece), time.perf_counter() - start))
        yield piece
        start = time.perf_counter()


def pace(timings: list[Piece]) -> str:
    """Report the time of the first piece, and the median speed of the others, which a compilation hardly changes.

    >>> pace([Piece(1, 1.9), Piece(16, 0.8), Piece(16, 0.01), Piece(16, 0.01)])
    '49 tokens, 1,600 tokens/s after the first, which took 1.9 s (compiling included)'
    """
    tokens = sum(piece.tokens for piece in timings)
    counted = f"{tokens:,} token{'s' if tokens > 1 else ''}"
    first = f"took {timings[0].seconds:.2g} s (compiling included)"
    if len(timings) < 4:
        return f"{counted}; the first {first}"
    speed = statistics.median(piece.tokens / piece.seconds for piece in timings[1:])
    return f"{counted}, {speed:,.0f} tokens/s after the first, which {first}"
