"""States saved while training goes on."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorstore

from tests.helpers.meshes import MODERN_8, batches_for, layout_of, recipe_of
from train.checkpoints import Checkpoints
from train.devices.layout import Layout
from train.optimizer import make_optimizer
from train.run import fresh_state, how_of
from train.step import many_steps

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("mesh", [None, "data=2,fsdp=4"])
def test_steps_that_take_the_state_s_buffers_do_not_change_what_is_being_saved(
    mesh: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The write begins only when twenty steps have been taken."""
    taken, opened = threading.Event(), tensorstore.open

    def open_later(*given: Any, **options: Any) -> Any:
        assert taken.wait(120)
        return opened(*given, **options)

    recipe = dataclasses.replace(recipe_of(MODERN_8), steps=20, chunk=20, validate_every=20)
    layout = Layout() if mesh is None else layout_of(mesh)
    optimizer = make_optimizer(recipe.config, recipe.optimizer, recipe.steps)
    steps: Any = many_steps(recipe.config, optimizer, how_of(recipe, layout))
    state = fresh_state(recipe, recipe.config, layout=layout)
    like, before = state, jax.tree.map(np.array, state)
    batches = batches_for(recipe)
    if mesh is not None:
        batches = layout.put(batches, None, layout.batch)
    run = steps.lower(state, batches).compile()

    checkpoints = Checkpoints(tmp_path)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    monkeypatch.setattr(tensorstore, "open", open_later)
    checkpoints.save(state)
    after, _ = run(state, batches)
    jax.block_until_ready(after)
    assert not np.array_equal(after.params.W_E, before.params.W_E)
    taken.set()
    checkpoints.finish()
    for saved, was in zip(
        jax.tree.leaves(checkpoints.restore(like)), jax.tree.leaves(before), strict=True
    ):
        np.testing.assert_array_equal(saved, was)
    checkpoints.close()
