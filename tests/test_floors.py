"""The house: imports go only downward, and `import jaxformer` stays light."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxformer
from tests.mutations import MUTATIONS, mutated

ROOT = Path(__file__).parents[1]

FLOORS = [
    ("jaxformer.reference", "jaxformer.checks", "jaxformer.config_checks"),
    ("jaxformer.config",),
    ("jaxformer.sites",),
    ("jaxformer.edits",),
    ("jaxformer.model",),
    (
        "jaxformer.text",
        "jaxformer.sharding",
        "jaxformer.decoding",
        "jaxformer.describe",
        "jaxformer.likelihood",
    ),
    ("jaxformer.pretrained",),
    ("jaxformer.interp",),
    ("jaxformer",),
    ("train",),
    ("benchmarks",),
    ("tests",),
]
"""From the ground up. A module imports from its own package and from floors below."""

MODEL = [
    "stream", "cpu", "spec", "cache", "params", "tap", "norm", "position", "kernels", "attention", "mlp",
    "remat", "checks", "transformer",
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


def test_no_module_bears_the_name_of_a_function_in_it():
    """`from jaxformer.decoding import generate` would give the module or the function, by what was imported before."""
    public = set(jaxformer.__all__)
    for module, path in MODULES.items():
        own = {getattr(node, "name", None) for node in ast.parse(path.read_text()).body}
        name = module.rpartition(".")[2]
        assert not module.startswith("jaxformer.") or name not in own | public, module


def test_the_reference_imports_only_math():
    assert imports(MODULES["jaxformer.reference"]) == {"math"}


def test_the_model_imports_only_what_a_model_needs():
    allowed = {"jax", "jaxtyping", "numpy", "safetensors", "jaxformer", *sys.stdlib_module_names}
    more = {
        "jaxformer.interp.engine.sweep": {"rich"},
        "jaxformer.interp.plots": {"matplotlib"},
        "jaxformer.pretrained.formats.source": {"ml_dtypes"},
        "jaxformer.pretrained.formats.safetensors_file": {"ml_dtypes"},
        "jaxformer.pretrained.formats.pytorch_file": {"ml_dtypes", "torch"},
        "jaxformer.pretrained.formats.gguf_file": {"gguf"},
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


LIMITS = {
    "lines": 250,
    "function": 45,
    "arguments": 9,
    "model": 1200,
    "statements": 130,
    "files": 8,
}
EXCEPTIONS = {
    "lines": {"jaxformer.reference", "jaxformer.config"},
    "function": set(),
    "arguments": {
        "jaxformer.decoding.generation.generate", "jaxformer.decoding.streaming.stream_tokens",
        "jaxformer.interp.attribution.attribution_patch", "jaxformer.interp.patching.patch_sweep",
        "jaxformer.interp.paths.path_patch",
    },
}  # fmt: skip
"""What may be longer than its limit: at most five of each kind."""


def sizes(kind: str) -> dict[str, int]:
    """Of everything outside the tests: lines of a file; lines of a function without its docstring; its arguments."""
    found = {}
    for module, path in MODULES.items():
        if module.startswith("tests"):
            continue
        text = path.read_text(encoding="utf-8")
        if kind == "lines":
            found[module] = text.count("\n")
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            if kind == "function":
                prose = node.body[0] if ast.get_docstring(node) else None
                prose_lines = (prose.end_lineno or 0) - prose.lineno + 1 if prose else 0
                size = (node.end_lineno or 0) - node.lineno + 1 - prose_lines
            else:
                names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                size = len([name for name in names if name.arg not in ("self", "cls")])
            name = f"{module}.{node.name}"
            found[name] = max(size, found.get(name, 0))
    return found


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_files_functions_and_argument_lists_stay_small(kind: str):
    long = {name: size for name, size in sizes(kind).items() if size > LIMITS[kind]}
    assert long.keys() == EXCEPTIONS[kind], long
    assert len(long) <= 5


def test_the_model_is_read_in_one_sitting():
    aside = {"kernels.py", "cache.py", "remat.py"}
    files = [f for f in (ROOT / "jaxformer/model").glob("*.py") if f.name not in aside]
    assert sum(file.read_text(encoding="utf-8").count("\n") for file in files) <= LIMITS["model"]


def test_the_seed_s_forward_pass_executes_few_statements_in_few_files():
    """In a process of its own: here the tests' type checks would be executed too."""
    out = subprocess.run(
        [sys.executable, "-m", "tests.executed"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    statements, files = map(int, re.findall(r"(\d+)  statements in (\d+) files", out)[0])
    assert statements <= LIMITS["statements"], out
    assert files <= LIMITS["files"], out


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
