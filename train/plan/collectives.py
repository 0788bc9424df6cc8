"""What the devices that run one program send each other, counted in the program that XLA made of it.

XLA for CPU has no reduce-scatter of its own making (its reduce-scatter-creator is a pass for GPU and TPU): where
those send each device its part of a sum, it sums whole arrays everywhere, an all-reduce, and each device then
slices its part. `Collective.scattered_bytes` says how much of an all-reduce is that, `with_reduce_scatter` what
would be sent without the detour. And it moves bfloat16 as float32, in twice the bytes.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from jax.stages import Compiled, Lowered

from train.plan.groups import device_groups
from train.plan.hlo import Op, Program, read_hlo
from train.plan.integers import loop_turns
from train.plan.scattered import scattered_parts

Kind = Literal[
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)


class Collective(NamedTuple):
    """One operation by which devices talk to each other."""

    kind: Kind
    payload_bytes: int
    """of the whole array that one run is about: the sum, what is gathered, or what a device has to give"""
    group_size: int
    """devices that talk to each other; a permutation's: those that it joins, by way of others too"""
    times: int = 1
    """how often the program runs it"""
    scattered_bytes: int = 0
    """of an all-reduce's payload, what each device reads its own part of and no more: a reduce-scatter would do"""
    undecided_bytes: int = 0
    """what may be so too, but the text does not say which part a device reads"""

    @property
    def sent_bytes(self) -> int:
        """Bytes that one device sends in one run, in rings. Ragged exchanges are taken to be even.

        Source: Thakur et al. 2005, "Optimization of Collective Communication Operations in MPICH", §4.
        """
        rounds = self.group_size - 1
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.payload_bytes
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.payload_bytes * rounds // self.group_size


class Traffic(NamedTuple):
    """Of many runs together, for one device."""

    runs: int
    payload_bytes: int
    sent_bytes: int


def collectives(text: str, *, turns: int | None = None) -> list[Collective]:
    """What one run of a program sends: each collective operation of its HLO, and how often it runs.

    A loop counts as often as it turns, of the branches of a condition the one that sends most; an operation in
    several parts, as start and done, counts once. Groups of one device are left out, for they send nothing, and
    so are sends and receives on their own.

    Args:
        text: optimised HLO, as `jax.stages.Compiled.as_text` gives it; `compile_to_text` gives more of it.
        turns: how often to count a loop of which nothing says how often it turns.

    Raises:
        ValueError: no HLO; a loop of unknown turns that sends something, if turns is None.

    >>> for one in collectives('''
    ... HloModule jit_f, num_partitions=8
    ...
    ... ENTRY %main (x: f32[4,16]) -> f32[32,16] {
    ...   %x = f32[4,16]{1,0} parameter(0)
    ...   ROOT %all = f32[32,16]{1,0} all-gather(%x), replica_groups=[1,8]<=[8], dimensions={0}
    ... }
    ... '''):
    ...     print(one.kind, one.payload_bytes, one.group_size, one.times, one.sent_bytes)
    all-gather 2048 8 1 1792
    """
    program = read_hlo(text)
    return _within(program.entry, program, turns)


def totals(found: Iterable[Collective]) -> dict[Kind, Traffic]:
    """Runs, payload and bytes sent of each kind, over all times that it runs.

    >>> totals([Collective("all-reduce", 800, 8, times=3), Collective("all-reduce", 80, 2)])
    {'all-reduce': Traffic(runs=4, payload_bytes=2480, sent_bytes=4280)}
    """
    sums: dict[Kind, Traffic] = {}
    for one in found:
        runs, payload, sent = sums.get(one.kind, Traffic(0, 0, 0))
        sums[one.kind] = Traffic(
            runs + one.times,
            payload + one.times * one.payload_bytes,
            sent + one.times * one.sent_bytes,
        )
    return sums


def with_reduce_scatter(found: Iterable[Collective]) -> list[Collective]:
    """The same where a compiler makes a reduce-scatter of an all-reduce of which each device reads its own part.

    That is what XLA does for GPU and TPU. What is undecided stays as it is.

    >>> [one.sent_bytes for one in with_reduce_scatter([Collective("all-reduce", 80, 8, 1, 64)])]
    [28, 56]
    """
    split: list[Collective] = []
    for one in found:
        rest = one.payload_bytes - one.scattered_bytes
        if rest or not one.scattered_bytes:
            split.append(one._replace(payload_bytes=rest, scattered_bytes=0))
        if one.scattered_bytes:
            split.append(
                Collective("reduce-scatter", one.scattered_bytes, one.group_size, one.times)
            )
    return split


def compile_to_text(lowered: Lowered) -> tuple[Compiled, str]:
    """A compiled program, and its optimised HLO with all its numbers.

    `as_text` leaves out arrays of more than ten numbers, as those are that say which part is whose on more than
    ten devices; then a scattered sum is undecided. XLA writes them where it is told to dump the program. One that
    JAX takes from its compilation cache is not dumped, and comes as `as_text` has it.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump = {
            "xla_dump_to": folder,
            "xla_dump_hlo_as_text": True,
            "xla_dump_large_constants": True,
        }
        compiled = lowered.compile(compiler_options=dump)
        dumped = [path.read_text() for path in Path(folder).glob("*after_optimizations.txt")]
        return compiled, max(dumped, key=len, default=compiled.as_text() or "")


def _within(
    computation: str, program: Program, turns: int | None, fused: set[int] | None = None
) -> list[Collective]:
    """What one run of a computation sends.

    XLA for TPU has one operation in each of the fusions beside which it goes on. Its channel tells; fused are
    the channels of the fusions before, if this computation is of a fusion.
    """
    found: list[Collective] = []
    channels: set[int] = set() if fused is None else fused
    for op in program.computations[computation].values():
        if op.opcode.removesuffix("-start") in KINDS:
            channel = op.number("channel_id=")
            if fused is None or channel is None or channel not in fused:
                found += _collective(op, program)
            if fused is not None and channel is not None:
                fused.add(channel)
        elif op.opcode == "while":
            found += _loop(op, program, turns)
        elif not op.opcode.endswith(("-done", "-update")):  # they name what -start has called
            inside = channels if op.opcode == "fusion" else None
            called = [_within(name, program, turns, inside) for name in op.called]
            if op.opcode == "conditional":
                called = [max(called, key=_sent)]
            found += [one for part in called for one in part]
    return found


def _loop(op: Op, program: Program, turns: int | None) -> list[Collective]:
    sends = [one for name in op.called for one in _within(name, program, turns)]
    if not sends:
        return []
    known = loop_turns(op, program)
    count = turns if known is None else known
    if count is None:
        raise ValueError(
            f"nothing says how often the loop {op.name} turns, in which devices send each other "
            f"{_sent(sends):,} bytes a turn; give turns=N to count it N times"
        )
    return [one._replace(times=one.times * count) for one in sends]


def _collective(op: Op, program: Program) -> list[Collective]:
    kind: Kind = next(kind for kind in KINDS if op.opcode.removesuffix("-start") == kind)
    groups = device_groups(op, program)
    size = max(len(group) for group in groups)
    given = [sum(operand.sizes) for operand in program.operands(op)]
    payload = given[0] if kind == "ragged-all-to-all" else sum(given)  # places and lengths follow
    if size == 1:
        return []
    if kind == "all-gather":
        payload *= size
    if kind != "all-reduce":
        return [Collective(kind, payload, size)]
    answers = scattered_parts(op, program, groups)
    scattered, undecided = (
        sum(part for part, is_so in zip(given, answers, strict=True) if is_so is answer)
        for answer in (True, None)
    )
    return [Collective(kind, payload, size, 1, scattered, undecided)]


def _sent(found: list[Collective]) -> int:
    return sum(one.times * one.sent_bytes for one in found)
