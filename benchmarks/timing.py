"""How every benchmark here times: warm up, then take turns, and report medians with quartiles."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """The median of some measurements (seconds per call, or a ratio), the quartiles, and their number."""

    median: float
    low: float
    high: float
    calls: int


def interleave(
    functions: Mapping[str, Callable[[], Any]],
    *,
    warmup: int = 1,
    repeats: int = 10,
    seconds: float = math.inf,
    settle: float = 0.1,
    together: int = 1,
) -> dict[str, list[float]]:
    """Each function's seconds per call, in turns (A B C, B C A, ...): a drift of the machine hits all alike.

    Args:
        functions: by name; each is called without arguments and its result waited for.
        warmup: rounds that are not counted.
        repeats: counted rounds.
        seconds: start no further round after this long, once there are three.
        settle: a call that takes less than this is made uncounted in its turn before the counted one, as often
            as it takes that long. Whoever came before leaves the caches full and, if it is another library, its
            threads spinning for a while on the cores.
        together: so many neighbours share a turn: always called one after the other.

    >>> len(interleave({"a": lambda: 1, "b": lambda: 2}, repeats=5)["a"])
    5
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    last = {
        name: min(clock(function) for _ in range(max(warmup, 1)))
        for name, function in functions.items()
    }
    begun = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - begun > seconds:
            break
        names = list(functions)
        turn = done * together % len(names)  # nobody always follows the same one
        for name in names[turn:] + names[:turn]:
            function = functions[name]
            settled = time.perf_counter() + settle
            while last[name] < settle and time.perf_counter() < settled:
                clock(function)
            last[name] = clock(function)
            taken[name].append(last[name])
    return taken


def clock(function: Callable[[], Any]) -> float:
    """The seconds of one call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def summarize(values: Sequence[float]) -> Timing:
    """Median and quartiles.

    >>> summarize([3.0, 1.0, 2.0]).median
    2.0
    """
    if len(values) == 1:
        return Timing(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high, len(values))


def paired(times: Sequence[float], base: Sequence[float]) -> Timing:
    """The ratio times/base, formed round by round before its median is taken.

    >>> paired([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]).median
    2.0
    """
    return summarize([a / b for a, b in zip(times, base, strict=True)])
