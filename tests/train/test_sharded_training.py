"""Training on a mesh of eight virtual devices: the numbers of one device, and an eighth of the memory on each."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.meshes import (
    CLASSIC_8,
    LAYOUTS,
    MODERN_8,
    batches_for,
    layout_of,
    recipe_of,
    trained,
)
from tests.helpers.models import SEED
from train.compiled import many_steps
from train.devices.layout import Layout
from train.optimizer import make_optimizer
from train.plan.memory import count_collectives
from train.recipe import Architecture, Optimizer
from train.run import batch_shapes, fresh_state, state_shapes, step_options

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.slow(unless=("all three",))
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_loss_curve_is_that_of_one_device(name: str):
    recipe, layout = recipe_of(MODERN_8), layout_of(*LAYOUTS[name])
    layout.check(recipe, recipe.config)
    state, history = trained(recipe, layout)
    alone, expected = trained(recipe, Layout())
    for metric in ("loss", "gradient_norm"):
        np.testing.assert_allclose(history[metric], expected[metric], rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, state.params, alone.params)
    for array in jax.tree.leaves(state):
        assert array.sharding.device_set == set(jax.devices())


@pytest.mark.slow
def test_initial_parameters_do_not_depend_on_the_mesh():
    recipe = recipe_of(CLASSIC_8)
    laid = fresh_state(recipe, recipe.config, layout=layout_of("fsdp=4,tensor=2"))
    alone = fresh_state(recipe, recipe.config, layout=Layout())
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), laid, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"optimizer": Optimizer(name="muon", warmup=1), "accumulate": 2}, {"seeds": 2}]
)
def test_so_is_that_of_muon_with_accumulation_and_that_of_an_ensemble(changes: dict[str, Any]):
    recipe, layout = recipe_of(CLASSIC_8, **changes), layout_of(*LAYOUTS["all three"])
    history, expected = (trained(recipe, where)[1] for where in (layout, Layout()))
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_in_64_bits_many_steps_give_the_same_parameters():
    """In 32 bits training amplifies rounding, with or without a mesh."""
    recipe = dataclasses.replace(recipe_of(MODERN_8), steps=24, validate_every=24, chunk=24)
    optimizer = make_optimizer(recipe.config, recipe.optimizer, recipe.steps)
    after = []
    for layout in (Layout(), layout_of("data=2,fsdp=2,tensor=2")):
        state = fresh_state(recipe, recipe.config)
        params: Any = jax.tree.map(lambda x: x.astype(jnp.float64), state.params)
        state = dataclasses.replace(state, params=params, optimizer=optimizer.init(params))
        if layout.mesh is not None:
            state = jax.device_put(state, layout.state(recipe.config, state))
        batches = layout.put(batches_for(recipe), None, layout.batch)
        after.append(
            many_steps(recipe.config, optimizer, step_options(recipe), layout)(state, batches)
        )
    (alone, history), (laid, other) = after
    np.testing.assert_allclose(other["loss"], history["loss"], rtol=1e-6)
    close = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10)
    jax.tree.map(close, laid.params, alone.params)


@pytest.mark.slow
def test_fully_sharded_each_device_holds_an_eighth_of_parameters_and_moments():
    recipe = recipe_of(MODERN_8)
    state, _ = trained(recipe, layout_of(*LAYOUTS["fully sharded"]))
    for tree in (state.params, state.optimizer):
        with_d = [x for x in jax.tree.leaves(tree) if 16 in x.shape]
        assert len(with_d) >= 10
        for array in with_d:
            assert array.addressable_shards[0].data.size * 8 == array.size


def test_without_a_mesh_a_step_has_no_constraint_at_all():
    recipe = recipe_of(dataclasses.replace(Architecture.of(SEED), n_vocab=24))
    optimizer = make_optimizer(recipe.config, recipe.optimizer, recipe.steps)
    state, batches = fresh_state(recipe, recipe.config), batches_for(recipe)
    text = str(jax.make_jaxpr(many_steps(recipe.config, optimizer))(state, batches))
    assert "sharding_constraint" not in text


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_fully_sharded_matrices_are_fetched_at_most_twice(accumulate: int):
    """Once in each pass; and gradients are summed once.

    The body of a loop is once in the program, for any number of layers and micro-batches.
    """
    recipe, layout = recipe_of(MODERN_8, accumulate=accumulate), layout_of("fsdp=4")
    recipe = dataclasses.replace(recipe, steps=1, chunk=1, validate_every=1)
    optimizer = make_optimizer(recipe.config, recipe.optimizer, 1)
    state, batches = state_shapes(recipe, recipe.config, layout), batch_shapes(recipe, layout)
    steps: Any = many_steps(recipe.config, optimizer, step_options(recipe), layout)
    found = count_collectives(steps.lower(state, batches).compile().as_text())
    cut = [x for x in jax.tree.leaves(state.params) if 16 in x.shape]
    assert len(cut) < found["all-gather"] <= 2 * len(cut)
    assert found["all-reduce"] < len(cut)
