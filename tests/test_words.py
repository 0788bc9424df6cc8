"""The words: one letter for one dimension everywhere, and no foreign English in what users read."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jaxformer
from tests.test_floors import MODULES

KEY = dict(re.findall(r"(?:^|  )([a-z])  (\S.*?)(?=  |$)", jaxformer.__doc__ or "", re.MULTILINE))
"""The dimension key, as `jaxformer/__init__.py` prints it."""

BANNED = (
    r"(?<!there )(?:is|are|be|was) no(?! longer)", "anew", "theirs", "ours", "so many", r"(?-i:that is none)",
    "of before", "of it", "asks", "asked", "nobody", "everybody", "whose own", "goes on", "go on", "going on", "wish",
    "climb", "horizon", "likewise", "made of", "makes of",
)  # fmt: skip
"""Words and phrases of a foreign or private English: write the field's word, and say what `it` is."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for module, path in MODULES.items():
        if not module.startswith("tests"):
            yield module, ast.parse(path.read_text(encoding="utf-8"))


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Docstrings, strings under a field (help texts), and the messages of errors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                yield node.lineno, node.value.value.split(">>>")[0]
        elif isinstance(node, ast.Raise) and node.exc is not None:
            parts = [n.value for n in ast.walk(node.exc) if isinstance(n, ast.Constant)]
            yield node.lineno, " ".join(part for part in parts if isinstance(part, str))


def axes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The axes of every annotation and of every einsum, as words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
            last = node.slice.elts[-1]
            array = re.search("Array|ndarray", ast.unparse(node.slice))
            if array and isinstance(last, ast.Constant) and isinstance(last.value, str):
                yield from ((node.lineno, axis.lstrip("*#?")) for axis in last.value.split())
        if isinstance(node, ast.Call) and "einsum" in ast.unparse(node.func):
            formula = node.args[0]
            if isinstance(formula, ast.Constant) and isinstance(formula.value, str):
                yield from ((node.lineno, letter) for letter in re.findall("[a-z]", formula.value))


def test_the_key_has_these_letters():
    assert sorted(KEY) == sorted("lbtsdnkghfvcrw")


def test_a_single_letter_is_one_of_the_key():
    unknown = [
        f"{module}:{line} {axis}"
        for module, tree in sources()
        for line, axis in axes(tree)
        if re.fullmatch("[A-Za-z]", axis) and axis not in KEY
    ]
    assert not unknown


def test_docstrings_help_texts_and_errors_use_the_field_s_words():
    pattern = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)
    found = [
        f"{module}:{line} {match[0]!r}"
        for module, tree in sources()
        for line, text in texts(tree)
        for match in pattern.finditer(" ".join(text.split()))
    ]
    assert not found


def test_the_search_finds_what_it_is_for():
    tree = ast.parse(
        'def f(x: Float[Array, "t q"]):\n    """This is no norm."""\n    jnp.einsum("tq,qd->td", x, x)\n'
    )
    assert [axis for _, axis in axes(tree)] == [*"tqqdtd", "t", "q"]
    pattern = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)
    assert [bool(pattern.search(text)) for _, text in texts(tree)] == [True]
    assert not pattern.search("There is no norm, and it is no longer there.")
    assert Path(jaxformer.__file__).name == "__init__.py"
