"""The timing method of all benchmarks: warm up, alternate the implementations, report medians with quartiles."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Median and quartiles of some measurements (seconds per call, or a ratio), and their number."""

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
    warm_up: float = 0.1,
    together: int = 1,
) -> dict[str, list[float]]:
    """Time functions alternately (A B C, B C A, ...), so that a drift of the machine affects all of them equally.

    Returns the seconds of each counted call, by name.

    Args:
        functions: by name; each is called without arguments, and the clock stops when its result is ready.
        warmup: rounds that are not counted.
        repeats: counted rounds.
        seconds: after this many seconds and three rounds, start no further round.
        warm_up: a shorter call is repeated uncounted for this many seconds before its counted call. The function
            that ran before leaves its data in the caches, and another library's threads spin on the cores for a while.
        together: neighbours in groups of this size keep their order in every round.

    >>> len(interleave({"a": lambda: 1, "b": lambda: 2}, repeats=5)["a"])
    5
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    last = {
        name: min(clock(function) for _ in range(max(warmup, 1)))
        for name, function in functions.items()
    }
    start = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - start > seconds:
            break
        names = list(functions)
        offset = done * together % len(names)  # so that the order rotates
        for name in names[offset:] + names[:offset]:
            function = functions[name]
            warm_until = time.perf_counter() + warm_up
            while last[name] < warm_up and time.perf_counter() < warm_until:
                clock(function)
            last[name] = clock(function)
            taken[name].append(last[name])
    return taken


def clock(function: Callable[[], Any]) -> float:
    """Return the seconds of one call, until its result is ready."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def summarize(values: Sequence[float]) -> Timing:
    """Return median and quartiles.

    >>> summarize([3.0, 1.0, 2.0]).median
    2.0
    """
    if len(values) == 1:
        return Timing(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high, len(values))


def paired(times: Sequence[float], base: Sequence[float]) -> Timing:
    """Return the median of the ratios times/base, which are taken round by round.

    >>> paired([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]).median
    2.0
    """
    return summarize([a / b for a, b in zip(times, base, strict=True)])
