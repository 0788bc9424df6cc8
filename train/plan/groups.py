"""Who talks to whom in a collective operation, in every form that XLA prints."""

import math
import re
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from train.plan.hlo import Op, Program

Groups = list[list[int]]
"""The devices that talk to each other, by their numbers."""


def device_groups(op: Op, program: Program) -> Groups:
    """Which devices one collective operation joins, in any of the forms that XLA prints.

    Raises:
        ValueError: a form that is not known here.
    """
    everyone = [list(range(program.replicas * program.partitions))]
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", op.attributes):
        return _rings([(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])])
    found = re.search(r"replica_groups=(.*)", op.attributes)
    if found is None or found[1].startswith("{}"):
        return everyone
    for form, reader in FORMS:
        if parts := form.match(found[1]):
            return _over_partitions(op, program, reader(*parts.groups()))
    raise ValueError(f"{op.name} has groups of an unknown form: replica_groups={found[1][:80]}")


def _listed(text: str) -> Groups:
    """{{0,1},{2,3}}: the devices of each group."""
    return [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", text)]


def _iota(shape: str, dims: str, order: str | None) -> Groups:
    """[4,2]<=[2,4]T(1,0): all devices in an array of dims, its axes in this order, in groups of that shape."""
    return _arranged(dims, order).reshape(_numbers(shape)).tolist()


def _mesh(axes: str, dims: str | None, order: str | None, ids: str | None, along: str) -> Groups:
    """mesh['a'=2,'b'=4] {'b'}: the devices of a mesh along some of its axes.

    An axis of size 8 in parts, 'a':(2)4, is the second of axes of sizes 2, 4 and 1 that it is made of.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.\-]+)'?=(\d+)", axes)}
    parts = [
        (name, int(before or 1), int(before or 1) * int(size or sizes[name]))
        for name, before, size in re.findall(r"'?([A-Za-z_][\w.\-]*)'?(?::\((\d+)\)(\d+))?", along)
    ]
    shape: list[int] = []
    chosen: list[int] = []
    for axis, size in sizes.items():
        mine = [(low, high) for name, low, high in parts if name == axis]
        cuts = sorted({1, size, *(cut for part in mine for cut in part)})
        for low, high in pairwise(cuts):
            if any(first <= low and high <= last for first, last in mine):
                chosen.append(len(shape))
            shape.append(high // low)
    devices = math.prod(sizes.values())
    numbers = np.array(_numbers(ids)) if ids else _arranged(dims or str(devices), order)
    there = range(len(shape) - len(chosen), len(shape))
    members = math.prod(shape[place] for place in chosen)
    return np.moveaxis(numbers.reshape(shape), chosen, list(there)).reshape(-1, members).tolist()


FORMS = (
    (re.compile(r"(\{\{.*?\}\})"), _listed),
    (re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"), _iota),
    (
        re.compile(
            r"mesh\[(.*?)\](?:, device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))\))? ?\{(.*?)\}"
        ),
        _mesh,
    ),
)


def _over_partitions(op: Op, program: Program, groups: Groups) -> Groups:
    """Groups of replicas, if a channel joins all partitions of each; else of devices already."""
    joined = op.opcode.startswith(("all-reduce", "all-gather", "reduce-scatter"))
    across = "channel_id=" in op.attributes and "use_global_device_ids=true" not in op.attributes
    if not (joined and across):
        return groups
    each = range(program.partitions)
    return [[r * program.partitions + p for r in group for p in each] for group in groups]


def _rings(pairs: list[tuple[int, int]]) -> Groups:
    """The devices that pairs join, directly or by way of others."""
    groups: Groups = []
    for source, target in pairs:
        touched = [group for group in groups if source in group or target in group]
        merged = sorted({source, target, *(device for group in touched for device in group)})
        groups = [group for group in groups if group not in touched] + [merged]
    return groups


def _arranged(dims: str, order: str | None) -> Int[np.ndarray, "..."]:
    sizes = _numbers(dims)
    array = np.arange(math.prod(sizes)).reshape(sizes)
    return array.transpose(_numbers(order)) if order else array


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
