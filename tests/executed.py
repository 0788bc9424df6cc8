"""Count the statements that the seed model's forward pass executes: `python -m tests.executed`."""

import ast
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxformer
from jaxformer import Config

ROOT = Path(jaxformer.__file__).parent
SEED = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)


@cache
def statements(file: str) -> dict[int, tuple[int, int]]:
    """The innermost statement that each line of a file belongs to; a function's signature counts as one."""
    owner: dict[int, tuple[int, int]] = {}
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):  # outer before inner
        if isinstance(node, ast.FunctionDef):
            owner[node.lineno] = node.lineno, node.col_offset
        elif isinstance(node, ast.stmt) and not isinstance(node, ast.ClassDef):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            owner |= dict.fromkeys(lines, (node.lineno, node.col_offset))
    return owner


def executed(call: Callable[[], Any]) -> Counter[str]:
    """How many different statements of the package a call executes, by file."""
    found = set()

    def local(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            file, line = frame.f_code.co_filename, frame.f_lineno
            found.add((file, statements(file).get(line, (line, 0))))
        return local

    def trace(frame: Any, _: str, __: Any) -> Any:
        return local if Path(frame.f_code.co_filename).is_relative_to(ROOT) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return Counter(str(Path(file).relative_to(ROOT)) for file, _ in found)


def seed_forward() -> Counter[str]:
    """Of the first trace of the seed model's forward pass after `init`, which has declared the parameters."""
    params, tokens = jaxformer.init(SEED, jax.random.key(0)), np.array([3, 1, 4])
    return executed(
        lambda: jax.make_jaxpr(lambda p, t: jaxformer.forward(p, SEED, t))(params, tokens)
    )


if __name__ == "__main__":
    counts = seed_forward()
    for file, number in counts.most_common():
        print(f"{number:4}  {file}")
    print(f"{counts.total():4}  statements in {len(counts)} files")
