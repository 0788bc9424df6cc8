"""The comparison of one case: check jaxformer and its peers against each other, then time them alternately."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.device import Device
from benchmarks.options import Options
from benchmarks.peers import UnsupportedError, peer_function
from benchmarks.program import Program
from benchmarks.roofline import Ceilings
from benchmarks.timing import interleave, paired, summarize
from jaxformer.config import Kernel

OPENING = ", opening"
"""Added to a contender's name: the first part of its call, such as generation of the first token."""


class Setting(NamedTuple):
    """The things that all cases of a run share."""

    options: Options
    device: Device
    dtype: str
    ceilings: Ceilings
    peers: list[str]
    say: Callable[[str], None]  # tells the user, for example, why a peer is skipped

    @property
    def kernel(self) -> Kernel:
        """Jaxformer's attention kernel on this device."""
        return self.options.compute_kernel(self.device.platform)


class Contender(NamedTuple):
    """An implementation, ready to be timed."""

    name: str
    call: Callable[[], Any]
    result: Any
    first_seconds: float  # seconds to the first result: build, compile and run
    notes: dict[str, Any]
    opening: Callable[[], Any] | None = (
        None  # the first part of the call, timed separately right after it
    )
    work: "Work | None" = None  # None: that of the other contenders
    exact: bool = True  # False: its result may differ from jaxformer's


class Work(NamedTuple):
    """The work of one call, the same for every implementation."""

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
    """Build an implementation and run it once; measure the seconds to its first result.

    Args:
        name: of the implementation.
        build: returns the call to time.
        calls: the number of results to compare; only the time to the first is measured.
        new: set if the call takes a number of tokens to generate. The call is timed with this number, its opening
            with 1.
        notes: further fields of its rows.
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
        jax.block_until_ready(opening())  # compiles here, not in a timed round
    return Contender(name, call, kept, first, notes, opening)


def enter_jaxformer(
    program: Program, build: Callable[[], Callable[..., Any]], *, calls: int = 1, **notes: Any
) -> Contender:
    """Enter jaxformer. Its program was compiled before, so add that time to the seconds to the first result."""
    ours = enter("jaxformer", build, calls=calls, **notes, **program.notes())
    return ours._replace(first_seconds=ours.first_seconds + program.seconds)


def enter_peers(
    setting: Setting,
    workload: str,
    arguments: tuple[Any, ...],
    *,
    calls: int = 1,
    new: int | None = None,
    **options: Any,
) -> list[Contender]:
    """Enter the peers that support a workload; tell the user why others are skipped."""
    entered = []
    for name in setting.peers:
        try:
            build = partial(peer_function(name, workload), *arguments, **options)
            entered.append(enter(name, build, calls=calls, new=new))
        except UnsupportedError as error:
            setting.say(f"{name} skipped: {error}")
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            setting.say(f"{name} failed: {type(error).__name__}: {lines[0]}")
    return entered


def in_float32_only(setting: Setting, why: str) -> Setting:
    """Return the setting; without peers if the dtype is not float32."""
    if setting.dtype == "float32" or not setting.peers:
        return setting
    setting.say(f"peers skipped: {why}")
    return setting._replace(peers=[])


def difference(result: Any, expected: Any) -> float:
    """Return the largest difference, relative to the largest expected value; inf if the shapes differ."""
    if result.shape != expected.shape:
        return float("inf")
    off, largest = 0.0, 1e-30
    # Row by row: in float64, the logits of a large batch may not fit into memory.
    for one, other in zip(rows_of(result), rows_of(expected), strict=True):
        a, b = as_array(one), as_array(other)
        off = max(off, float(np.abs(a - b).max(initial=0.0)))
        largest = max(largest, float(np.abs(b).max(initial=0.0)))
    return off / largest


def rows_of(values: Any) -> Any:
    """Return the rows along the first axis; a scalar is one row."""
    return values if values.ndim else [values]


def as_array(result: Any) -> np.ndarray:
    """Return a JAX array or a PyTorch tensor as a float64 array."""
    if hasattr(result, "detach"):
        result = result.detach().double().cpu().numpy()
    return np.asarray(result).astype(np.float64)


def compare(
    ours: Contender, peers: list[Contender], work: Work, tolerance: float, setting: Setting
) -> list[dict[str, Any]]:
    """Return one row per contender. A contender whose result differs from jaxformer's is marked and not timed."""
    options, ceilings = setting.options, setting.ceilings
    off = {peer.name: difference(peer.result, ours.result) for peer in peers if peer.exact}
    agreeing = [ours, *(peer for peer in peers if off.get(peer.name, 0.0) <= tolerance)]
    times = time_contenders(agreeing, options)
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
            "device_peak_bytes": used.get("peak_bytes_in_use"),  # of the process so far
        }
        if one.name in times:
            row |= timed(times[one.name], times[ours.name], one.work or work, ceilings)
        if one.name + OPENING in times:
            row |= split(times, one.name, ours.name)
        rows.append(row | {f"{key}_ceiling": rate for key, rate in ceilings._asdict().items()})
    return rows


def time_contenders(contenders: list[Contender], options: Options) -> dict[str, list[float]]:
    """Time every call and every opening; return the seconds of each round. All contenders have an opening, or none."""
    calls: dict[str, Callable[[], Any]] = {}
    for one in contenders:
        calls[one.name] = one.call
        if one.opening is not None:
            calls[one.name + OPENING] = one.opening
    together = len(calls) // len(contenders)
    return interleave(calls, repeats=options.repeats, seconds=options.seconds, together=together)


def split(times: Mapping[str, list[float]], name: str, ours: str) -> dict[str, Any]:
    """Return the seconds of the opening and of the rest of the call, and their ratios to jaxformer's.

    The ratios are taken round by round. There are no figures if noise made one of the times 0 or negative.
    """
    opening, own_opening = times[name + OPENING], times[ours + OPENING]
    rest, own_rest = (
        [call - opening for call, opening in zip(times[one], times[one + OPENING], strict=True)]
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
    """Return the figures of a timed row: seconds, rates, fractions of the ceilings, and the ratio to jaxformer."""
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
