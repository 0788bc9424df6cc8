"""The names that users reach from `import jaxformer`, and the page that lists them."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxformer
from tests.helpers.errors import raises

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "jaxformer/README.md").read_text(encoding="utf-8")
NAMES, ROOMS = PAGE.split("## The inside view")


def listed(section: str) -> dict[str, str]:
    """The names in a section's tables, each once, with their lines."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def public(module: object) -> set[str]:
    """The functions and classes that a module defines."""
    return {
        name
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and not name.startswith("_")
        if value.__module__ == getattr(module, "__name__", None)
    }


def printed(code: str) -> str:
    """What a program prints in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_inside_view_is_imported_at_its_first_use():
    loaded = "[m for m in sys.modules if m.startswith('jaxformer.interp')]"
    assert printed(f"import sys, jaxformer; dir(jaxformer); print({loaded})") == "[]"
    assert printed("import jaxformer; print(jaxformer.interp.edit.ablate.__name__)") == "ablate"
    one = f"import sys, jaxformer; jaxformer.interp.metric; print({loaded})"
    assert printed(one) == "['jaxformer.interp', 'jaxformer.interp.metric']"


def test_every_room_of_the_inside_view_is_reachable():
    files = {path.stem for path in (ROOT / "jaxformer/interp").glob("*.py")} - {"__init__"}
    assert set(jaxformer.interp.__all__) == files
    for room in files:
        assert getattr(jaxformer.interp, room).__name__ == f"jaxformer.interp.{room}"
    assert {"interp", *jaxformer.__all__} <= {*dir(jaxformer)}
    assert files <= {*dir(jaxformer.interp)}


@pytest.mark.parametrize("module", ["jaxformer", "jaxformer.interp"])
def test_an_unknown_name_is_an_attribute_error_that_names_it(module: str):
    with raises(AttributeError, repr(module), "'walk'"):
        _ = sys.modules[module].walk
    with raises(ImportError, "walk"):
        exec(f"from {module} import walk")  # noqa: S102


def test_the_page_lists_every_public_name_once():
    assert listed(NAMES).keys() == {*jaxformer.__all__}


def test_the_page_lists_every_function_and_class_of_every_room():
    rooms = re.split(r"^### `(\w+)`.*$", ROOMS, flags=re.MULTILINE)[1:]
    found = dict(zip(rooms[::2], map(listed, rooms[1::2]), strict=True))
    assert len(rooms) == 2 * len(found)
    assert {room: {*names} for room, names in found.items()} == {
        room: public(getattr(jaxformer.interp, room)) for room in jaxformer.interp.__all__
    }


def test_the_lines_of_the_page_are_short_sentences_or_phrases():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert [name for name, line in rows if len(line) > 110 or not line.endswith(".")] == []
    assert [line for line in PAGE.splitlines() if len(line) > 140] == []


@pytest.mark.usefixtures("standard_promotion")
def test_the_program_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "jaxformer/README.md", "exec"), {})  # noqa: S102  our own page
    assert capsys.readouterr().out == "(7, 10) (2, 4, 7, 7)\n5\nTrue\n"
