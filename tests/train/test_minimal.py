"""`train.minimal` is the run of `python -m train` in one file."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from train import minimal
from train.compiled import many_steps
from train.data.dataset import open_data
from train.optimizer import make_optimizer
from train.presets import PRESETS
from train.run import fresh_state, keys, step_options

FEW, MANY = 10, 50


def losses(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The first losses of the one file, and of the preset."""
    recipe = PRESETS["seed"]()
    data = open_data(recipe)
    config = recipe.config.for_tokenizer(data.tokenizer)
    assert config == minimal.CONFIG
    optimizer = make_optimizer(config, recipe.optimizer, recipe.steps)
    batches = data.draw(keys(recipe.seed).batches, np.arange(steps))
    take_steps = many_steps(config, optimizer, step_options(recipe))
    _, history = take_steps(fresh_state(recipe, config), jax.tree.map(np.asarray, batches))
    found = [loss for _, loss in itertools.islice(minimal.train(), steps)]
    return np.array(found), np.asarray(history["loss"])


@pytest.mark.usefixtures("standard_promotion")
def test_its_first_losses_are_those_of_the_preset():
    np.testing.assert_allclose(*losses(FEW), rtol=0, atol=1e-5)


@pytest.mark.processes
def test_fifty_losses_are_those_of_the_preset_as_users_compile_it():
    """In a process without the tests' compiler options, which round the two programs differently."""
    code = f"from tests.train.test_minimal import losses; x, y = losses({MANY}); print(abs(x - y).max())"
    root = Path(minimal.__file__).parents[1]
    environment = {name: x for name, x in os.environ.items() if not name.startswith(("XLA", "JAX"))}
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert float(out) < 1e-5


def test_it_is_short_enough_to_fork():
    assert len(Path(minimal.__file__).read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.usefixtures("standard_promotion")
def test_the_command_trains_and_prints_a_sample(capsys):
    minimal.main(3)
    out = capsys.readouterr().out
    assert "step    0  loss" in out
    assert "validation loss" in out
    assert "The " in out
