"""Whether each device reads only its own part of a sum that all of them have: a reduce-scatter in disguise.

It is one if all that reads the sum are slices, a g-th of it long for a group of g devices, that begin at another
place on each device of a group. Where a slice begins is worked out for every device, from its number.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Int

from train.plan.groups import Groups
from train.plan.hlo import Op, Program
from train.plan.integers import SAME, value


def scattered_parts(op: Op, program: Program, groups: Groups) -> list[bool | None]:
    """Of each array that an all-reduce sums, whether it is so; None: where its slices begin is not known."""
    operands = program.operands(op)
    results = [op]
    if op.opcode.endswith("-start"):
        results = [user for user, _ in _users(program, op)]
    if len(operands) == 1:
        slices = _joined(_all_slices(program, result) for result in results)
        return [_apart(program, operands[0], slices, groups)]
    return [
        _apart(program, operand, _joined(_slices_at(program, of, place) for of in results), groups)
        for place, operand in enumerate(operands)
    ]


def _slices_at(program: Program, of: Op, place: int) -> list[Op] | None:
    """The dynamic slices by which alone the array at a place of a tuple is read."""
    found: list[list[Op] | None] = [None] if of.root else []
    for user, number in _users(program, of):
        if user.opcode == "get-tuple-element":
            mine = user.number(r"\bindex=") == place
            found.append(_all_slices(program, user) if mine else [])
        elif user.opcode in ("fusion", "call"):
            (called,) = user.called
            found.append(_slices_at(program, program.parameter(called, number), place))
        else:
            found.append(None)
    return _joined(found)


def _all_slices(program: Program, of: Op) -> list[Op] | None:
    """The dynamic slices by which alone a result is read; None: something else reads it."""
    found: list[list[Op] | None] = []
    if of.root:
        caller = program.caller(of.home)
        if caller is None or caller.opcode not in ("fusion", "call"):
            return None
        found.append(_all_slices(program, caller))
    for user, place in _users(program, of):
        if user.opcode == "dynamic-slice" and place == 0:
            found.append([user])
        elif user.opcode in (*SAME, "convert"):  # what was widened to be summed is narrowed first
            found.append(_all_slices(program, user))
        elif user.opcode in ("fusion", "call"):
            (called,) = user.called
            found.append(_all_slices(program, program.parameter(called, place)))
        else:
            found.append(None)
    return _joined(found)


def _apart(program: Program, whole: Op, slices: list[Op] | None, groups: Groups) -> bool | None:
    """Whether slices give each device of a group another part of the whole, and the same one each time."""
    size = len(groups[0])
    if not slices or any(len(group) != size for group in groups):
        return False
    elements = _elements(whole)
    if any(_elements(taken) * size != elements for taken in slices):
        return False
    if program.replicas > 1:
        return None
    begins = [_begins(program, taken) for taken in slices]
    first, shape = begins[0], program.operand(slices[0], 0).arrays
    for taken, begin in zip(slices, begins, strict=True):
        if begin is None or first is None:
            return None
        if program.operand(taken, 0).arrays != shape or not np.array_equal(begin, first):
            return False
        for group in groups:
            if len(np.unique(begin[group], axis=0)) != size:
                return False
        if (begin % np.array(taken.arrays[0][1])).any():
            return False
    return True


def _begins(program: Program, taken: Op) -> Int[np.ndarray, "devices axes"] | None:
    """Where a dynamic slice begins on each device, along each axis."""
    places = [value(program, op) for op in program.operands(taken)[1:]]
    known = [place.reshape(-1) for place in places if place is not None]
    if len(known) < len(places):
        return None
    (_, whole), (_, part) = program.operand(taken, 0).arrays[0], taken.arrays[0]
    return np.stack(known, axis=1).clip(0, np.array(whole) - np.array(part))


def _users(program: Program, op: Op) -> list[tuple[Op, int]]:
    return program.users.get((op.home, op.name), [])


def _elements(op: Op) -> int:
    return sum(math.prod(dims) for _, dims in op.arrays)


def _joined(found: Any) -> list[Op] | None:
    """All of them; None: one of them is."""
    lists = list(found)
    return None if None in lists else [op for part in lists for op in part]
