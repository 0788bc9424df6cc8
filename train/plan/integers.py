"""Whole numbers of a compiled program that follow from which device it runs on: places in arrays, turns of loops."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from train.plan.hlo import Op, Program

PerDevice = Int[np.ndarray, "devices *dims"]
"""A small array of whole numbers, as each device has it."""

SAME = ("bitcast", "copy", "reshape", "transpose")
"""What only moves the numbers of an array about."""


def loop_turns(loop: Op, program: Program) -> int | None:
    """How often a loop turns: as XLA says, or as it counts if it counts up to a number; None: nothing says it."""
    said = loop.number(r'"known_trip_count":\{"n":"?')
    test = program.result(loop.part("condition"))
    after = program.result(loop.part("body"))
    if said is not None or test.opcode != "compare" or after.opcode != "tuple":
        return said
    counter, limit = program.operands(test)
    index = _given(program, counter)
    if index is None or "direction=LT" not in test.attributes:
        return None
    step = program.operand(after, index)
    others = [op for op in program.operands(step) if _given(program, op) != index]
    if step.opcode != "add" or len(others) != 1:
        return None
    start = _at(program, program.operand(loop, 0), index)
    turns = [start, value(program, limit), value(program, others[0])]
    if any(each is None or len(np.unique(each)) != 1 for each in turns):
        return None
    first, end, by = (int(each.flat[0]) for each in turns if each is not None)
    return max(-(-(end - first) // by), 0) if by > 0 else None


def value(program: Program, op: Op) -> PerDevice | None:
    """What an operation gives on each device, if that follows from the device's number."""
    return VALUES.get(op.opcode, _unknown)(program, op)


def _unknown(program: Program, op: Op) -> None:
    del program, op


def _constant(program: Program, op: Op) -> PerDevice | None:
    if not set(op.inside) <= set("0123456789-{}, ") or not op.arrays:
        return None
    (_, dims), *_ = op.arrays
    numbers = np.array(
        [int(number) for number in op.inside.strip("{}").split(",") if number.strip()]
    )
    if numbers.size != math.prod(dims):
        return None
    return np.broadcast_to(numbers.reshape(dims), (program.partitions, *dims))


def _number(program: Program, op: Op) -> PerDevice | None:
    del op
    return np.arange(program.partitions) if program.replicas == 1 else None


def _count(program: Program, op: Op) -> PerDevice | None:
    (_, dims), *_ = op.arrays
    if len(dims) != 1:
        return None
    return np.broadcast_to(np.arange(dims[0]), (program.partitions, *dims))


def _table(program: Program, op: Op) -> PerDevice | None:
    """One entry of a list."""
    table, place = (value(program, operand) for operand in program.operands(op)[:2])
    if table is None or place is None or table.ndim != 2 or op.arrays[0][1] != (1,):
        return None
    return np.take_along_axis(table, place.reshape(-1, 1).clip(0, table.shape[1] - 1), axis=1)


def _reshaped(program: Program, op: Op) -> PerDevice | None:
    given = value(program, program.operand(op, 0))
    (_, dims), *_ = op.arrays
    return None if given is None else given.reshape(-1, *dims)


def _passed(program: Program, op: Op) -> PerDevice | None:
    """What a computation is given, of an operation that calls it once."""
    caller = program.caller(op.home)
    if caller is None or caller.opcode not in ("fusion", "call"):
        return None
    return value(program, program.operand(caller, int(op.inside)))


def _returned(program: Program, op: Op) -> PerDevice | None:
    (called,) = op.called
    return value(program, program.result(called))


def _element(program: Program, op: Op) -> PerDevice | None:
    index = op.number(r"\bindex=")
    return None if index is None else _at(program, program.operand(op, 0), index)


def _at(program: Program, source: Op, index: int) -> PerDevice | None:
    """The value at this place in a tuple."""
    if source.opcode == "tuple":
        return value(program, program.operand(source, index))
    if source.opcode in ("copy", "optimization-barrier"):
        return _at(program, program.operand(source, 0), index)
    if source.opcode == "fusion":
        (called,) = source.called
        return _at(program, program.result(called), index)
    loop = source if source.opcode == "while" else None
    if source.opcode == "parameter":
        caller = program.caller(source.home)
        if caller is not None and caller.opcode in ("fusion", "call"):
            return _at(program, program.operand(caller, int(source.inside)), index)
        loop = caller if caller is not None and caller.opcode == "while" else None
    if loop is None or not _kept(program, loop, index):
        return None
    return _at(program, program.operand(loop, 0), index)


def _kept(program: Program, loop: Op, index: int) -> bool:
    """Whether a loop hands on what it got at this place, turn for turn."""
    after = program.result(loop.part("body"))
    return after.opcode == "tuple" and _given(program, program.operand(after, index)) == index


def _given(program: Program, op: Op) -> int | None:
    """The place in the tuple that its computation is given where this comes from as it is."""
    while op.opcode in SAME:
        op = program.operand(op, 0)
    if op.opcode != "get-tuple-element" or program.operand(op, 0).opcode != "parameter":
        return None
    return op.number(r"\bindex=")


def _calculated(program: Program, op: Op) -> PerDevice | None:
    values = [value(program, operand) for operand in program.operands(op)]
    known = [each for each in values if each is not None]
    return FUNCTIONS[op.opcode](*known) if len(known) == len(values) else None


def _compared(program: Program, op: Op) -> PerDevice | None:
    left, right = (value(program, operand) for operand in program.operands(op))
    direction = re.search(r"direction=(\w+)", op.attributes)
    if left is None or right is None or direction is None:
        return None
    return COMPARISONS[direction[1]](left, right).astype(int)


COMPARISONS: dict[str, Callable[..., Any]] = {
    "EQ": np.equal,
    "NE": np.not_equal,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.floor_divide,
    "remainder": np.remainder,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "shift-left": np.left_shift,
    "shift-right-logical": np.right_shift,
    "clamp": lambda low, each, high: np.clip(each, low, high),
    "select": lambda chosen, yes, no: np.where(chosen, yes, no),
}
"""Of whole numbers from 0 on, as places in arrays are."""

VALUES: dict[str, Callable[[Program, Op], PerDevice | None]] = {
    "constant": _constant,
    "iota": _count,
    "partition-id": _number,
    "parameter": _passed,
    "fusion": _returned,
    "call": _returned,
    "get-tuple-element": _element,
    "dynamic-slice": _table,
    "compare": _compared,
    "convert": _reshaped,
    **dict.fromkeys(("bitcast", "copy", "reshape"), _reshaped),
    **dict.fromkeys(FUNCTIONS, _calculated),
}
"""By opcode."""
