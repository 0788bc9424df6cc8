"""Runs on a mesh: batches, checkpoints, command line."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from tests.helpers.meshes import MODERN_8, batches_for, layout_of, recipe_of, size_of, trained
from tests.helpers.runs import check_refused, folder_of, numbers, options, stop_at
from tests.helpers.tuned import foreign, text_at, tuning
from train.__main__ import main, parse
from train.checkpoints import Checkpoints
from train.compiled import many_steps
from train.data.dataset import open_data
from train.devices.layout import Layout
from train.optimizer import make_optimizer
from train.run import Run, draw, fresh_state, state_shapes, step_options
from train.start import open_recipe

pytestmark = pytest.mark.usefixtures("standard_promotion")


def run_of(corpus: Path, layout: Layout, *extra: str) -> Run:
    recipe = parse(options(corpus, "x", 10, *extra)).recipe
    data = open_data(recipe)
    config = recipe.config.for_tokenizer(data.tokenizer)
    return Run(recipe, config, data, corpus.parent, Console(), layout=layout)


@pytest.mark.parametrize(
    "extra",
    [
        (), ("--seeds", "2"), ("--order", "shuffled"),
        pytest.param(("--corpus", "brackets", "--context", "13"), marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_batches_on_a_mesh_are_those_of_one_device(corpus: Path, extra: tuple[str, ...]):
    layout = layout_of("data=2,fsdp=2")
    steps = np.arange(3, 6)
    laid, alone = (draw(run_of(corpus, where, *extra), steps) for where in (layout, Layout()))
    jax.tree.map(np.testing.assert_array_equal, laid, alone)
    assert [shard.data.shape[-2] for shard in laid.windows.addressable_shards] == [1, 1, 1, 1]


def saved_and_restored(folder: Path, state: Any, like: Any) -> Any:
    checkpoints = Checkpoints(folder)
    try:
        checkpoints.save(state)
        checkpoints.finish()
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"),
    [("data=2,fsdp=4", None), (None, "fsdp=2,tensor=2"), ("fsdp=8", "data=2,tensor=4")],
    ids=["8 to 1", "1 to 4", "fsdp to tensor"],
)
def test_checkpoints_move_between_meshes(tmp_path: Path, one: str | None, other: str | None):
    recipe = recipe_of(MODERN_8)
    state, _ = trained(recipe, layout_of(one))
    like = state_shapes(recipe, recipe.config, layout_of(other))
    restored = saved_and_restored(tmp_path, state, like)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    for array, shape in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        if other is not None:
            assert array.sharding == shape.sharding
        assert len(array.sharding.device_set) == size_of(other)


@pytest.mark.slow
def test_a_run_on_a_mesh_resumes_without_one_and_equals_the_run_of_one_device(corpus: Path):
    size = ["--config.d-model", "16", "--batch", "8", "--tokenizer", "bytes"]
    whole, moved = (options(corpus, name, 20, *size) for name in ("whole", "moved"))
    assert main(whole) == 0
    stop_at([*moved, "--mesh", "data=2,fsdp=2,tensor=2"], 3)
    assert main([*moved, "--resume"]) == 0
    lines, expected = numbers(folder_of(moved)), numbers(folder_of(whole))
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, own in zip(lines, expected, strict=True):
        for name in line.keys() & {"loss", "validation_loss", "gradient_norm"}:
            assert line[name] == pytest.approx(own[name], rel=1e-5)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (("--mesh", "data=3"), ("--mesh data=3", 8)),
        (("--mesh", "data"), ("mesh='data'", "AXIS=SIZE")),
        (("--mesh", "data=2,data=4"), ("mesh='data=2,data=4'", "data")),
        (("--mesh", "data=8"), ("batch=4", "accumulate=1", 8)),
        (("--mesh", "tensor=8"), (8, "tensor=8")),
        (("--mesh", "sequence=8"), ("context=12", 8, "sequence")),
        (("--mesh", "fsdp=8", "--rules", "d:fsdp"), ("'d:fsdp'", "AXIS=MESH-AXIS")),
        (("--mesh", "fsdp=8", "--rules", "d=x"), ("d=x", "fsdp=8")),
        (("--rules", "d=fsdp"), ("--rules d=fsdp", "--mesh")),
        (("--mesh", "dat=8"), ("dat", "--mesh dat=8", "data", "--rules")),
        (("--mesh", "data=8", "--rules", "batch=data+data"), ("batch=data+data",)),
        (("--mesh", "data=8", "--rules", "t=data"), ("t", "batch", "data")),
        (("--mesh", "data=4294967296,fsdp=4294967296"), (18446744073709551616, 8)),
    ],
)
def test_what_does_not_fit_is_refused(corpus: Path, capsys: Any, extra: Any, named: Any):
    command = options(corpus, "refused", 10, "--tokenizer", "bytes", *extra)
    check_refused(capsys, command, *named)
    assert not folder_of(command).exists()


@pytest.mark.slow
def test_a_model_without_layers_trains_on_a_mesh_and_resumes(tmp_path: Path):
    flat = dataclasses.replace(MODERN_8, n_layers=0)
    recipe, layout = recipe_of(flat), layout_of("data=2,fsdp=4")
    state, history = trained(recipe, layout)
    np.testing.assert_allclose(history["loss"], trained(recipe, Layout())[1]["loss"], rtol=1e-5)
    restored = saved_and_restored(tmp_path, state, state_shapes(recipe, flat, layout))
    batches = layout.put(batches_for(recipe), None, layout.batch)
    optimizer = make_optimizer(flat, recipe.optimizer, recipe.steps)
    program: Any = many_steps(flat, optimizer, step_options(recipe), layout)
    steps = program.lower(restored, batches).compile()
    after, _ = steps(restored, batches)
    assert int(steps(after, batches)[0].step) == 12


def test_a_model_to_start_from_is_sharded_too(tmp_path: Path):
    start, text = foreign(tmp_path / "model", "llama-plain"), text_at(tmp_path)
    recipe = parse(tuning(start, text, tmp_path, "x", "--steps", "10")).recipe
    layout = layout_of("data=4,tensor=2")
    laid, alone = open_recipe(recipe, layout), open_recipe(recipe)
    assert laid.sha256 == alone.sha256
    state = fresh_state(laid.recipe, laid.config, laid.first, layout)
    jax.tree.map(np.testing.assert_array_equal, state.params, alone.first)
    W_Q = state.params.blocks.attn.W_Q
    assert {shard.data.size * 2 for shard in W_Q.addressable_shards} == {W_Q.size}
