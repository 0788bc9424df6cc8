"""How every benchmark here times: warm up, then take turns, and report medians."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Seconds per call: the median and the quartiles around it."""

    median: float
    low: float
    high: float
    calls: int


def time_calls(function: Callable[[], Any], *, warmup: int = 2, repeats: int = 20) -> Timing:
    """One function's times, each call waited for."""
    return interleave({"it": function}, warmup=warmup, repeats=repeats)["it"]


def interleave(
    functions: Mapping[str, Callable[[], Any]], *, warmup: int = 2, repeats: int = 20
) -> dict[str, Timing]:
    """Several functions' times, measured in turns (A B A B ...), so that a drift of the machine hits all alike.

    >>> interleave({"a": lambda: 1, "b": lambda: 2}, repeats=5)["a"].calls
    5
    """
    for _ in range(warmup):
        for function in functions.values():
            jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: summarize(times) for name, times in seconds.items()}


def summarize(times: list[float]) -> Timing:
    """Median and quartiles.

    >>> summarize([3.0, 1.0, 2.0]).median
    2.0
    """
    if len(times) == 1:
        return Timing(times[0], times[0], times[0], 1)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, low, high, len(times))
