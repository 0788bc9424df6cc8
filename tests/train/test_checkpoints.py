"""Checkpoints saved during training."""

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
from train.compiled import many_steps
from train.optimizer import make_optimizer
from train.run import fresh_state, step_options

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("mesh", [None, "data=2,fsdp=4"])
def test_steps_do_not_change_what_is_being_saved(mesh: str | None, tmp_path: Path, monkeypatch):
    """The steps donate the state's buffers; here the write begins only after twenty steps."""
    taken, opened = threading.Event(), tensorstore.open

    def open_later(*given: Any, **options: Any) -> Any:
        assert taken.wait(120)
        return opened(*given, **options)

    recipe = dataclasses.replace(recipe_of(MODERN_8), steps=20, chunk=20, validate_every=20)
    layout = layout_of(mesh)
    optimizer = make_optimizer(recipe.config, recipe.optimizer, recipe.steps)
    steps: Any = many_steps(recipe.config, optimizer, step_options(recipe), layout)
    state = fresh_state(recipe, recipe.config, layout=layout)
    before = jax.tree.map(np.array, state)
    batches = layout.put(batches_for(recipe), None, layout.batch)
    run = steps.lower(state, batches).compile()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(tensorstore, "open", open_later)
    checkpoints.save(state)
    after, _ = run(state, batches)
    jax.block_until_ready(after)
    assert not np.array_equal(after.params.W_E, before.params.W_E)
    taken.set()
    checkpoints.finish()
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(like), before)
    checkpoints.close()
