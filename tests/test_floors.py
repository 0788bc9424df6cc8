"""The house: imports go only downward, and `import jaxformer` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

from tests.mutations import MUTATIONS, mutated

ROOT = Path(__file__).parents[1]

FLOORS = [
    ("jaxformer.validity", "jaxformer.reference_positions", "jaxformer.jsonfile"),
    ("jaxformer.config", "jaxformer.reference"),
    ("jaxformer.spec", "jaxformer.sites", "jaxformer.formats.source"),
    ("jaxformer.stream", "jaxformer.cache", "jaxformer.sampling"),
    ("jaxformer.norm", "jaxformer.position", "jaxformer.mlp", "jaxformer.formats.gguf_header"),
    (
        "jaxformer.attention",
        "jaxformer.formats.safe",
        "jaxformer.formats.pickled",
        "jaxformer.formats.ggufs",
    ),
    ("jaxformer.params", "jaxformer.formats.folder"),
    ("jaxformer.transformer", "jaxformer.sharding", "jaxformer.formats"),
    ("jaxformer.subwords", "jaxformer.prompts", "jaxformer.score"),
    ("jaxformer.tokenizer", "jaxformer.reading"),
    ("jaxformer.decode",),
    ("jaxformer.generate", "jaxformer.checkpoint"),
    ("jaxformer.streaming", "jaxformer.beam", "jaxformer.vocabularies.ggml"),
    ("jaxformer.vocabularies.classes", "jaxformer.families.fields", "jaxformer.families.layout"),
    (
        "jaxformer.vocabularies.folder",
        "jaxformer.families.family",
        "jaxformer.families.rotary",
        "jaxformer.families.windows",
    ),
    ("jaxformer.vocabularies", "jaxformer.families.llama", "jaxformer.families.gpt2"),
    ("jaxformer.families.gemma2", "jaxformer.families.qwen2", "jaxformer.families.plan"),
    (
        "jaxformer.families.fill",
        "jaxformer.families.gemma3",
        "jaxformer.families.gpt_neo",
        "jaxformer.families.gpt_neox",
        "jaxformer.families.mistral",
        "jaxformer.families.olmo2",
        "jaxformer.families.qwen3",
    ),
    ("jaxformer.families",),
    ("jaxformer.families.export", "jaxformer.families.gguf_names"),
    ("jaxformer.families.gguf", "jaxformer.hub"),
    ("jaxformer.pretrained",),
    ("jaxformer.interp.parts",),
    (
        "jaxformer.interp.change",
        "jaxformer.interp.components",
        "jaxformer.interp.factored",
        "jaxformer.interp.jacobian",
        "jaxformer.interp.metric",
        "jaxformer.interp.plots",
    ),
    ("jaxformer.interp.climb", "jaxformer.interp.frozen"),
    (
        "jaxformer.interp.edit",
        "jaxformer.interp.sweep",
        "jaxformer.interp.lens",
        "jaxformer.interp.circuits",
        "jaxformer.interp.attribution",
        "jaxformer.interp.refactor",
    ),
    (
        "jaxformer.interp",
        "jaxformer.interp.decompose",
        "jaxformer.interp.edges",
        "jaxformer.interp.fold",
        "jaxformer.interp.heads",
        "jaxformer.interp.patching",
        "jaxformer.interp.paths",
    ),
    ("jaxformer",),
    ("train",),
    ("benchmarks",),
    ("tests",),
]
"""From the ground up. A module imports from floors below its own; train, benchmarks and tests also from
within themselves. The name of a package stands for all its modules that no other line names."""


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


def floor(module: str) -> int:
    for height, names in enumerate(FLOORS):
        if module in names:
            return height
    top = module.split(".")[0]
    assert top != "jaxformer", f"{module} has no floor; give it one in FLOORS"
    return next(height for height, names in enumerate(FLOORS) if top in names)


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


def is_below(other: str, module: str) -> bool:
    """Whether one module may import another."""
    top = module.split(".")[0]
    same_house = top != "jaxformer" and other.split(".")[0] == top
    return same_house or floor(other) < floor(module)


def test_imports_go_only_downward():
    upward = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other in imports(path) & MODULES.keys()
        if not is_below(other, module)
    ]
    assert not upward


def test_the_reference_imports_only_math_and_its_own_positions():
    positions = "jaxformer.reference_positions"
    assert imports(MODULES["jaxformer.reference"]) <= {"math", positions}
    assert imports(MODULES[positions]) == {"math"}


def test_the_model_imports_only_what_a_model_needs():
    allowed = {"jax", "jaxtyping", "numpy", "safetensors", "jaxformer", *sys.stdlib_module_names}
    more = {
        "jaxformer.interp.sweep": {"rich"},
        "jaxformer.interp.plots": {"matplotlib"},
        "jaxformer.formats.source": {"ml_dtypes"},
        "jaxformer.formats.safe": {"ml_dtypes"},
        "jaxformer.formats.pickled": {"ml_dtypes", "torch"},
        "jaxformer.formats.ggufs": {"gguf"},
        "jaxformer.formats.gguf_header": {"ml_dtypes", "gguf"},
        "jaxformer.subwords": {"tokenizers"},
        "jaxformer.hub": {"huggingface_hub"},
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
