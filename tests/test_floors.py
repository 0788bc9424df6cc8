"""The house: imports go only downward, and `import jaxformer` stays light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

from tests.mutations import MUTATIONS, mutated

ROOT = Path(__file__).parents[1]

FLOORS = [
    ("jaxformer.reference", "jaxformer.checks", "jaxformer.config_checks"),
    ("jaxformer.config",),
    ("jaxformer.model",),
    ("jaxformer.text", "jaxformer.sharding", "jaxformer.decoding"),
    ("jaxformer.pretrained",),
    ("jaxformer.interp",),
    ("jaxformer",),
    ("train",),
    ("benchmarks",),
    ("tests",),
]
"""From the ground up. A module imports from its own package and from floors below."""

MODEL = [
    "stream", "spec", "sites", "cache", "params", "tap", "norm", "position", "kernels", "attention", "mlp", "remat",
    "checks", "transformer", "score",
]  # fmt: skip
"""The order in which the files of `jaxformer.model` can be read: each imports only from files before it."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files() -> list[Path]:
    return [
        f
        for top in ("jaxformer", "train", "benchmarks", "tests")
        for f in (ROOT / top).rglob("*.py")
    ]


MODULES = {module_name(path): path for path in files()}


def package(module: str) -> str:
    """The entry of FLOORS that a module belongs to."""
    names = [name for names in FLOORS for name in names]
    fits = [name for name in names if module == name or module.startswith(f"{name}.")]
    found = max(fits, key=len)
    assert found != "jaxformer" or module == "jaxformer", f"{module} has no floor in FLOORS"
    return found


def floor(module: str) -> int:
    return next(height for height, names in enumerate(FLOORS) if package(module) in names)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
    return found


def test_imports_go_only_downward():
    upward = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other in imports(path) & MODULES.keys()
        if package(module) != package(other) and floor(other) >= floor(module)
    ]
    assert not upward


def test_the_model_can_be_read_in_order():
    place = {f"jaxformer.model.{name}": place for place, name in enumerate(MODEL)}
    assert place.keys() == {name for name in MODULES if name.startswith("jaxformer.model.")}
    for module in place:
        for other in imports(MODULES[module]) & place.keys():
            assert place[other] < place[module], f"{module} imports {other}, which comes later"


def test_no_imports_go_in_a_circle():
    graph = {module: imports(path) & MODULES.keys() for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_reference_imports_only_math():
    assert imports(MODULES["jaxformer.reference"]) == {"math"}


def test_the_model_imports_only_what_a_model_needs():
    allowed = {"jax", "jaxtyping", "numpy", "safetensors", "jaxformer", *sys.stdlib_module_names}
    more = {
        "jaxformer.interp.engine.sweep": {"rich"},
        "jaxformer.interp.plots": {"matplotlib"},
        "jaxformer.pretrained.formats.source": {"ml_dtypes"},
        "jaxformer.pretrained.formats.safe": {"ml_dtypes"},
        "jaxformer.pretrained.formats.pickled": {"ml_dtypes", "torch"},
        "jaxformer.pretrained.formats.ggufs": {"gguf"},
        "jaxformer.pretrained.formats.gguf_header": {"ml_dtypes", "gguf"},
        "jaxformer.text.subwords": {"tokenizers"},
        "jaxformer.pretrained.hub": {"huggingface_hub"},
        "jaxformer.pretrained.tokenizers.folder": {"transformers"},
    }
    for module, path in MODULES.items():
        if module.split(".")[0] == "jaxformer":
            needed = {name.split(".")[0] for name in imports(path)}
            assert needed <= allowed | more.get(module, set()), module


def test_importing_jaxformer_brings_in_no_training_library():
    heavy = (
        "flax",
        "optax",
        "orbax",
        "matplotlib",
        "rich",
        "tyro",
        "safetensors",
        "torch",
        "tokenizers",
        "gguf",
        "huggingface_hub",
        "transformers",
        "train",
        "benchmarks",
    )
    code = f"import sys, jaxformer; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_files_and_functions_stay_small_enough_to_read():
    long = []
    for module, path in MODULES.items():
        if module.startswith("tests"):
            continue
        text = path.read_text()
        most = 400 if module == "jaxformer.reference" else 330  # the oracle is one file
        if (lines := text.count("\n")) > most:
            long.append(f"{module} has {lines} lines, more than {most}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                prose = len((ast.get_docstring(node) or "").splitlines())
                lines = (node.end_lineno or 0) - node.lineno + 1 - prose
                if lines > 50:
                    long.append(f"{module}.{node.name} has {lines} lines, more than 50")
    assert not long


def test_a_file_that_is_run_ends_with_the_call_of_its_main():
    """What is defined below would not be there yet."""
    for module, path in MODULES.items():
        blocks = [ast.unparse(node) for node in ast.parse(path.read_text()).body]
        guards = [i for i, text in enumerate(blocks) if text.startswith("if __name__ ==")]
        assert guards in ([], [len(blocks) - 1]), module


def test_no_test_matches_the_words_of_an_error():
    """Errors are matched by what they name: `raises` in tests/helpers/errors.py."""
    matching = [
        f"{path}:{node.lineno}"
        for module, path in MODULES.items()
        if module.startswith("tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.raises"
        if any(keyword.arg == "match" for keyword in node.keywords)
    ]
    assert not matching


def test_every_fault_that_tests_are_measured_by_can_still_be_made():
    for mutation in MUTATIONS:
        assert mutated(mutation, ROOT)
        assert (ROOT / mutation.near).is_dir()


def test_no_postponed_annotations():
    """They would switch the shape checks off for dataclasses."""
    for path in files():
        assert "from __future__ import " + "annotations" not in path.read_text()


def test_the_top_level_is_the_design_s():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    top = {line.split("/")[0] for line in tracked.stdout.split()}
    house = {"pyproject.toml", "README.md", "LICENSE", "jaxformer", "train", "tests", "benchmarks"}
    assert {name for name in top if not name.startswith(".")} <= house
