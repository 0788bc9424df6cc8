"""`train.minimal` is the run of `python -m train` in one file."""

import itertools
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

FIRST = 50


@pytest.mark.usefixtures("standard_promotion")
def test_its_first_losses_are_those_of_the_preset():
    recipe = PRESETS["seed"]()
    data = open_data(recipe)
    config = recipe.config.for_tokenizer(data.tokenizer)
    assert config == minimal.CONFIG
    optimizer = make_optimizer(config, recipe.optimizer, recipe.steps)
    batches = data.draw(keys(recipe.seed).batches, np.arange(FIRST))
    steps = many_steps(config, optimizer, step_options(recipe))
    _, history = steps(fresh_state(recipe, config), jax.tree.map(np.asarray, batches))
    found = [loss for _, loss in itertools.islice(minimal.train(), FIRST)]
    np.testing.assert_allclose(found, history["loss"], rtol=0, atol=1e-5)


def test_it_is_short_enough_to_fork():
    assert len(Path(minimal.__file__).read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.usefixtures("standard_promotion")
def test_the_command_trains_and_prints_a_sample(capsys):
    minimal.main(3)
    out = capsys.readouterr().out
    assert "step    0  loss" in out
    assert "validation loss" in out
    assert "The " in out
