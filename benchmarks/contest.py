"""One workload on one case: ours and the peers', checked against each other, then timed in turns."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.device import Device
from benchmarks.options import Options
from benchmarks.peers import UnsupportedError, entrance
from benchmarks.program import Program
from benchmarks.roofline import Ceilings
from benchmarks.timing import interleave, paired, summarize
from jaxformer.config import Kernel

OPENING = ", opening"
"""Behind a contender's name: the beginning of its call."""


class Setting(NamedTuple):
    """What every case of a run shares."""

    options: Options
    device: Device
    dtype: str
    ceilings: Ceilings
    peers: list[str]
    say: Callable[[str], None]  # tells the user why a peer is left out

    @property
    def kernel(self) -> Kernel:
        """Our attention, on this device."""
        return self.options.compute_kernel(self.device.platform)


class Contender(NamedTuple):
    """An implementation, ready to be timed."""

    name: str
    call: Callable[[], Any]
    result: Any
    first_seconds: float  # from weights and tokens to the first result: build, compile, run
    notes: dict[str, Any]
    opening: Callable[[], Any] | None = None  # how the call begins, timed apart in the same turn
    work: "Work | None" = None  # where it is not that of all the others
    exact: bool = True  # False: not held to ours; whoever compares says what differs


class Work(NamedTuple):
    """What one call does, whoever does it."""

    tokens: int
    flops: int
    traffic: int  # bytes


def enter(
    name: str,
    build: Callable[[], Callable[..., Any]],
    *,
    calls: int = 1,
    new: int | None = None,
    **notes: Any,
) -> Contender:
    """Build an implementation and let it give its first result, on the clock.

    Args:
        name: of the implementation.
        build: makes the call to be timed.
        calls: how many results to keep for the comparison; the clock stops after the first.
        new: the call takes a number of tokens to generate; it is timed with this one, its opening with 1.
        notes: what else its rows say.
    """
    start = time.perf_counter()
    built = build()
    call = built if new is None else partial(built, new)
    results = [jax.block_until_ready(call())]
    first = time.perf_counter() - start
    results += [jax.block_until_ready(call()) for _ in range(calls - 1)]
    kept = results[0] if calls == 1 else np.stack([as_array(result) for result in results])
    opening = None if new is None else partial(built, 1)
    if opening is not None:
        jax.block_until_ready(opening())  # compiled here, not in somebody's turn
    return Contender(name, call, kept, first, notes, opening)


def enter_ours(
    program: Program, build: Callable[[], Callable[..., Any]], *, calls: int = 1, **notes: Any
) -> Contender:
    """Ours, which was compiled ahead of time: that belongs to the time of its first result."""
    ours = enter("jaxformer", build, calls=calls, **notes, **program.notes())
    return ours._replace(first_seconds=ours.first_seconds + program.seconds)


def gather(
    setting: Setting,
    workload: str,
    arguments: tuple[Any, ...],
    *,
    calls: int = 1,
    new: int | None = None,
    **options: Any,
) -> list[Contender]:
    """The peers that take part in a workload; the user is told why another does not."""
    entered = []
    for name in setting.peers:
        try:
            build = partial(entrance(name, workload), *arguments, **options)
            entered.append(enter(name, build, calls=calls, new=new))
        except UnsupportedError as error:
            setting.say(f"{name} skipped: {error}")
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            setting.say(f"{name} failed: {type(error).__name__}: {lines[0]}")
    return entered


def in_float32_only(setting: Setting, why: str) -> Setting:
    """The setting, without peers in another dtype."""
    if setting.dtype == "float32" or not setting.peers:
        return setting
    setting.say(f"peers skipped: {why}")
    return setting._replace(peers=[])


def difference(result: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value expected; inf where shapes differ."""
    if result.shape != expected.shape:
        return float("inf")
    off, largest = 0.0, 1e-30
    # In parts: as float64, the logits of a large batch may not fit into memory.
    for one, other in zip(parts(result), parts(expected), strict=True):
        a, b = as_array(one), as_array(other)
        off = max(off, float(np.abs(a - b).max(initial=0.0)))
        largest = max(largest, float(np.abs(b).max(initial=0.0)))
    return off / largest


def parts(values: Any) -> Any:
    """Along the first axis; a scalar is its own only row."""
    return values if values.ndim else [values]


def as_array(result: Any) -> np.ndarray:
    """A JAX array or a PyTorch tensor as float64."""
    if hasattr(result, "detach"):
        result = result.detach().double().cpu().numpy()
    return np.asarray(result).astype(np.float64)


def contest(
    ours: Contender, peers: list[Contender], work: Work, tolerance: float, setting: Setting
) -> list[dict[str, Any]]:
    """One row per contender. One that does not compute what ours computes is marked, not timed."""
    options, ceilings = setting.options, setting.ceilings
    off = {peer.name: difference(peer.result, ours.result) for peer in peers if peer.exact}
    agreeing = [ours, *(peer for peer in peers if off.get(peer.name, 0.0) <= tolerance)]
    times = race(agreeing, options)
    used = setting.device.memory_stats() or {}
    rows = []
    for one in [ours, *peers]:
        row = {
            "implementation": one.name,
            "first_seconds": one.first_seconds,
            "difference": off.get(one.name, 0.0 if one.exact else None),
            "agrees": one.name in times,
            **(one.work or work)._asdict(),
            **one.notes,
            "device_peak_bytes": used.get("peak_bytes_in_use"),  # of the whole process so far
        }
        if one.name in times:
            row |= timed(times[one.name], times[ours.name], one.work or work, ceilings)
        if one.name + OPENING in times:
            row |= split(times, one.name, ours.name)
        rows.append(row | {f"{key}_ceiling": rate for key, rate in ceilings._asdict().items()})
    return rows


def race(contenders: list[Contender], options: Options) -> dict[str, list[float]]:
    """The seconds of every call and every opening, round by round; either all have one or none."""
    calls: dict[str, Callable[[], Any]] = {}
    for one in contenders:
        calls[one.name] = one.call
        if one.opening is not None:
            calls[one.name + OPENING] = one.opening
    together = len(calls) // len(contenders)
    return interleave(calls, repeats=options.repeats, seconds=options.seconds, together=together)


def split(times: Mapping[str, list[float]], name: str, ours: str) -> dict[str, Any]:
    """The seconds of the opening and of the rest of the call, each with its ratio to ours, round by round.

    Of a rest that was once lost in the noise (not above 0) there are no figures.
    """
    opening, own_opening = times[name + OPENING], times[ours + OPENING]
    rest, own_rest = (
        [whole - part for whole, part in zip(times[one], times[one + OPENING], strict=True)]
        for one in (name, ours)
    )
    figures: dict[str, Any] = {}
    for part, taken, own in (("opening", opening, own_opening), ("rest", rest, own_rest)):
        if min(*taken, *own) <= 0:
            continue
        timing, ratio = summarize(taken), paired(taken, own)
        for key in ("median", "low", "high"):
            figures[f"{part}_{key}"] = getattr(timing, key)
            figures[f"{part}_over_ours_{key}"] = getattr(ratio, key)
    return figures


def timed(times: list[float], ours: list[float], work: Work, ceilings: Ceilings) -> dict[str, Any]:
    """A timed row's figures: seconds, rates, shares of the ceilings, and the ratio to ours."""
    timing, ratio = summarize(times), paired(times, ours)
    rate = work.flops / timing.median
    return {
        **timing._asdict(),
        "tokens_per_second": work.tokens / timing.median,
        "flops_per_second": rate,
        "of_matmul": rate / ceilings.matmul,
        "of_copy": work.traffic / timing.median / ceilings.copy,
        "of_roofline": ceilings.bound(work.flops, work.traffic) / timing.median,
        "of_peak": None if ceilings.peak is None else rate / ceilings.peak,
        "time_over_ours": ratio.median,
        "time_over_ours_low": ratio.low,
        "time_over_ours_high": ratio.high,
    }
