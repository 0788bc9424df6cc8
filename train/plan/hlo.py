"""A compiled program as XLA prints it, read back: its operations, and who calls whom."""

import math
import re
from collections import defaultdict
from typing import NamedTuple


class Op(NamedTuple):
    """One operation: `%name = shape opcode(inside), attributes`."""

    home: str
    """the computation that it is in"""
    name: str
    shape: str
    opcode: str
    inside: str
    """operands, or the value of a constant, or the number of a parameter"""
    attributes: str
    root: bool
    """whether it is its computation's result"""

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return NAMES.findall(self.inside)

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        listed = [
            name for group in CALL_LISTS.findall(self.attributes) for name in NAMES.findall(group)
        ]
        return CALLS.findall(self.attributes) + listed

    @property
    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """Type and dimensions of its result: of several arrays, if it is a tuple."""
        return [
            (dtype, tuple(int(size) for size in re.findall(r"\d+", dims)))
            for dtype, dims in ARRAYS.findall(self.shape)
        ]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each array of its result."""
        return [_bytes(dtype, math.prod(dims)) for dtype, dims in self.arrays]

    def number(self, pattern: str) -> int | None:
        """The number that its attributes have at a place: after these words."""
        found = re.search(rf"{pattern}(\d+)", self.attributes)
        return None if found is None else int(found[1])

    def part(self, name: str) -> str:
        """The computation that a loop has as its body, or as its condition."""
        found = re.search(rf"\b{name}=%([\w.\-]+)", self.attributes)
        if found is None:
            raise ValueError(f"the operation {self.opcode} {self.name} of this HLO has no {name}")
        return found[1]


class Program(NamedTuple):
    """A module of HLO."""

    computations: dict[str, dict[str, Op]]
    entry: str
    replicas: int
    partitions: int
    users: dict[tuple[str, str], list[tuple[Op, int]]]
    """of a computation's operation: who takes its result, as which operand"""
    callers: dict[str, list[Op]]

    def operand(self, op: Op, place: int) -> Op:
        """The operation whose result it takes there."""
        return self.computations[op.home][op.operands[place]]

    def operands(self, op: Op) -> list[Op]:
        """All of them."""
        return [self.computations[op.home][name] for name in op.operands]

    def parameter(self, computation: str, number: int) -> Op:
        """What a computation is given as its operand of this number."""
        return next(
            op
            for op in self.computations[computation].values()
            if op.opcode == "parameter" and int(op.inside) == number
        )

    def result(self, computation: str) -> Op:
        """What a computation returns."""
        return next(op for op in self.computations[computation].values() if op.root)

    def caller(self, computation: str) -> Op | None:
        """The one operation that runs it; None: the program's own, or several do."""
        callers = self.callers.get(computation, [])
        return callers[0] if len(callers) == 1 else None


def read_hlo(text: str) -> Program:
    """The program in a text of HLO, as `jax.stages.Compiled.as_text` gives it.

    Raises:
        ValueError: a text that has no program.
    """
    computations: dict[str, dict[str, Op]] = {}
    entry = home = ""
    for line in COMMENTS.sub("", text).splitlines():
        if header := HEADER.match(line):
            home = header[2]
            computations[home] = {}
            entry = home if header[1] else entry
        elif home and (found := OPERATION.match(line)):
            op = _operation(home, found)
            computations[home][op.name] = op
    if not entry:
        raise ValueError(
            f"this is no HLO with an ENTRY computation: {text[:60]!r}; give compiled.as_text()"
        )
    for ops in computations.values():
        for name in [name for op in ops.values() for name in op.operands if "#" in name]:
            _add_element(ops, name)
    users, callers = defaultdict(list), defaultdict(list)
    for op in (op for ops in computations.values() for op in ops.values()):
        for place, name in enumerate(op.operands):
            users[op.home, name].append((op, place))
        for name in op.called:
            callers[name].append(op)
    counts = [re.search(rf"\b{of}=(\d+)", text) for of in ("replica_count", "num_partitions")]
    replicas, partitions = (int(found[1]) if found else 1 for found in counts)
    return Program(computations, entry, replicas, partitions, users, callers)


COMMENTS = re.compile(r"/\*.*?\*/")
HEADER = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
OPERATION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)$")
NAMES = re.compile(r"%([\w.\-]+(?:#\d+)*)")
"""Those of operands; %name#1 is the second element of the tuple %name."""
CALLS = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)"
)
CALL_LISTS = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
ARRAYS = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
"""An array's type and dimensions, which are at most so many where it says <=."""


def _operation(home: str, found: re.Match[str]) -> Op:
    root, name, rest = found.groups()
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    shape, opcode = rest[:end], rest[end:opening].strip()
    return Op(
        home, name, shape, opcode, rest[opening + 1 : closing - 1], rest[closing:], bool(root)
    )


def _add_element(ops: dict[str, Op], name: str) -> None:
    """Write out the operation that takes an element of a tuple, where only its short form is printed."""
    if name in ops:
        return
    whole, _, index = name.rpartition("#")
    if "#" in whole:
        _add_element(ops, whole)
    of = ops[whole]
    shape = _elements(of.shape)[int(index)]
    element = "get-tuple-element"
    ops[name] = Op(of.home, name, shape, element, f"%{whole}", f", index={index}", root=False)


def _elements(shape: str) -> list[str]:
    """The shapes in a tuple's."""
    depth, start, found = 0, 1, []
    for place, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (depth == 1 and letter == ",") or depth == 0:
            found.append(shape[start:place].strip())
            start = place + 1
    return found


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one here."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.end()
    raise ValueError(f"a line of HLO has a parenthesis that nothing closes: {text[:80]!r}")


def _bytes(dtype: str, elements: int) -> int:
    """The type's name says its bits, but for truth values, in bytes, and tokens, which are nothing."""
    bits = re.search(r"\d+", dtype)
    return -(-elements * (int(bits[0]) if bits else 8 * (dtype == "pred")) // 8)
