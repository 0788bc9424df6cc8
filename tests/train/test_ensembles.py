"""Ensembles: every member equals the single run with its seed."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxformer import load
from tests.helpers.runs import assert_same_run, folder_of, numbers, options
from train import loop
from train.__main__ import main, parse
from train.compiled import many_steps, validation_sums
from train.data.dataset import open_data
from train.optimizer import make_optimizer
from train.run import Run, draw, fresh_state, member

pytestmark = pytest.mark.usefixtures("standard_promotion")


def run_of(corpus: Path, *extra: str) -> Run:
    recipe = parse(options(corpus, "x", 6, *extra)).recipe
    data = open_data(recipe)
    config = recipe.config.for_tokenizer(data.tokenizer)
    return Run(recipe, config, data, corpus.parent, Console())


def trained(run: Run, steps: int) -> Any:
    """Return the parameters after some steps, and the loss of each step."""
    recipe = run.recipe
    optimizer = make_optimizer(run.config, recipe.optimizer, recipe.steps)
    advance = many_steps(run.config, optimizer, run.step_options, run.layout, members=recipe.seeds)
    state, history = advance(fresh_state(recipe, run.config), draw(run, np.arange(steps)))
    return state.params, history["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("--accumulate", "2", "--optimizer.name", "muon")])
def test_a_member_is_the_single_run_of_its_seed(corpus: Path, extra: tuple[str, ...]):
    ensemble = run_of(corpus, "--seed", "5", "--seeds", "3", *extra)
    together, losses = trained(ensemble, 5)
    batches = draw(ensemble, np.arange(5))
    assert batches.windows.shape == (5, 3, 4, 13)
    held_out = jax.tree.map(jnp.asarray, ensemble.data.held_out)
    sums = validation_sums(ensemble.config, ensemble.step_options, members=3)(together, held_out)
    for index in (0, 2):
        single = run_of(corpus, "--seed", str(5 + index), *extra)
        alone = draw(single, np.arange(5))
        np.testing.assert_array_equal(batches.windows[:, index], alone.windows)
        np.testing.assert_array_equal(batches.counted[:, index], alone.counted)
        params, history = trained(single, 5)
        np.testing.assert_allclose(losses[:, index], history, rtol=1e-5)
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        jax.tree.map(close, member(together, index, 3), params)
        own = validation_sums(single.config, single.step_options)(params, held_out)
        np.testing.assert_allclose(sums[index], own, rtol=1e-4)


@pytest.mark.slow
def test_an_ensemble_s_lines_models_and_resumed_run(corpus: Path):
    extra = ["--seed", "5", "--seeds", "2", "--watch", "induction", "update-norm"]
    whole, stopped = (options(corpus, name, 20, *extra) for name in ("whole", "stopped"))
    assert main(whole) == 0
    lines = numbers(folder_of(whole))
    for name, each in (("loss", "losses"), ("validation_loss", "validation_losses")):
        held = [line for line in lines if name in line]
        assert len(held) >= 3
        for line in held:
            assert len(line[each]) == 2
            assert line[name] == pytest.approx(np.mean(line[each]), rel=1e-12)
            assert line[f"{name}_spread"] == pytest.approx(np.std(line[each]), rel=1e-12)
    last = lines[-1]
    assert np.shape(last["induction"]) == (2, 1, 2)
    assert np.shape(last["mlp_update_norm"]) == (2, 1)
    models = [load(folder_of(whole) / "models" / seed) for seed in ("5", "6")]
    assert models[0].config == models[1].config
    assert not np.array_equal(models[0].params.W_E, models[1].params.W_E)
    with pytest.MonkeyPatch.context() as patch:
        taken = iter([loop.draw] * 3)  # four chunks of five steps

        def interrupted(*args: Any) -> Any:
            for each in taken:
                return each(*args)
            raise KeyboardInterrupt

        patch.setattr(loop, "draw", interrupted)
        assert main(stopped) == 130
    assert main([*stopped, "--resume"]) == 0
    assert_same_run(whole, stopped)
