"""The names that users reach from `import jaxformer`, and the page that lists them."""

import subprocess
import sys
from pathlib import Path

import pytest

import jaxformer
from tests.helpers.errors import raises

ROOT = Path(__file__).parents[1]


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
