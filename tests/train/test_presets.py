"""Presets: what they have in common, and what the toy tasks teach."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxformer import Characters, count
from train.data.dataset import open_data
from train.data.tasks import TASKS
from train.metrics import read_metrics
from train.presets import PRESETS

ROOT = Path(__file__).parents[2]
COMPARED = ("nanogpt-cpu", "baby", "seed-best")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_documented_and_valid(name: str):
    assert (PRESETS[name].__doc__ or "").strip()
    recipe = PRESETS[name]()
    if recipe.corpus in TASKS or recipe.corpus == "python-docs":
        data = open_data(recipe)
        assert count(recipe.config.for_tokenizer(data.tokenizer)) > 0


def test_compared_presets_have_the_same_tokens_and_parameters():
    recipes = [PRESETS[name]() for name in COMPARED]
    assert {r.batch * r.context * r.steps for r in recipes} == {12 * 64 * 2000}
    assert {r.corpus for r in recipes} == {"shakespeare"}
    of_shakespeare = Characters(
        "".join(map(chr, range(65)))
    )  # the number of characters in that text
    sizes = [count(r.config.for_tokenizer(of_shakespeare)) for r in recipes]
    assert max(sizes) < 1.01 * min(sizes)


def test_seed_best_is_a_seed_model():
    config = PRESETS["seed-best"]().config
    assert (config.position, config.norm, config.bias) == ("none", "none", "none")


@pytest.mark.processes
@pytest.mark.parametrize("n_layers", [1, 2])
def test_two_layers_form_an_induction_head_and_one_does_not(n_layers: int, tmp_path: Path):
    """Half the heads and context of the preset, in separate processes, because XLA does not optimise in the tests."""
    command = [
        sys.executable, "-m", "train", "induction", "--config.n-layers", str(n_layers), "--config.n-heads", "2",
        "--config.d-head", "32", "--config.n-context", "31", "--context", "31", "--steps", "400",
        "--runs", str(tmp_path),
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    last = read_metrics(tmp_path / "induction")[-1]
    best, loss = np.max(last["induction"]), last["validation_loss"]
    if n_layers == 2:
        assert best > 0.9
        assert loss < 0.1
    else:
        assert best < 0.2
        assert loss > 3.0
