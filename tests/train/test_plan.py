"""Plans of memory and collectives, compared with runs on a mesh of the same size."""

import dataclasses
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from jaxformer import count
from tests.helpers.errors import check_names
from tests.helpers.meshes import MODERN_8, batches_for, layout_of, recipe_of
from train.compiled import many_steps
from train.optimizer import make_optimizer
from train.plan.__main__ import main
from train.plan.memory import own_bytes, plan
from train.presets import PRESETS
from train.run import fresh_state, step_options

pytestmark = pytest.mark.usefixtures("standard_promotion")


def first_device_bytes(tree: Any) -> int:
    """Return the bytes that are actually stored on the first device."""
    shards = (shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == jax.devices()[0])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=1", "data=2,fsdp=2,tensor=2", "data=2,sequence=4"])
def test_a_plan_equals_what_a_run_on_that_mesh_takes(mesh: str):
    recipe = dataclasses.replace(recipe_of(MODERN_8), steps=1, chunk=1, validate_every=1)
    layout = layout_of(mesh)
    planned = plan(recipe, recipe.config, layout)
    state = fresh_state(recipe, recipe.config, layout=layout)
    batches = layout.put(batches_for(recipe), None, layout.batch)
    optimizer = make_optimizer(recipe.config, recipe.optimizer, recipe.steps)
    steps: Any = many_steps(recipe.config, optimizer, step_options(recipe), layout)
    ran = steps.lower(state, batches).compile()
    analysis = ran.memory_analysis()
    assert planned.parameters == first_device_bytes(state.params)
    assert planned.optimizer == first_device_bytes(state.optimizer)
    assert planned.batch == first_device_bytes(batches)
    held = planned.parameters + planned.optimizer + planned.batch + state.step.nbytes
    assert held == analysis.argument_size_in_bytes
    assert planned.temporaries == analysis.temp_size_in_bytes
    after, _ = ran(state, batches)
    assert first_device_bytes(after.params) == planned.parameters
    assert (planned.collectives == {}) == (mesh == "data=1")


@pytest.mark.parametrize(
    ("preset", "least"), [("gpt2-1.5b", 1.5e9), ("llama-7b", 6.7e9), ("llama-70b", 68e9)]
)
def test_the_large_presets_are_as_large_as_their_names(preset: str, least: float):
    assert least < count(PRESETS[preset]().config) < 1.06 * least


@pytest.mark.processes
def test_the_command_plans_for_many_devices_in_a_process_of_its_own():
    command = ["gpt2-1.5b", "--mesh", "data=4,fsdp=16", "--batch", "64", "--hardware", "h100"]
    command = [sys.executable, "-m", "train.plan", *command]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    check_names(said, "1,557,611,200", "data=4,fsdp=16", "64 devices", "all-gather", "temporaries")
    check_names(said, "h100", "989 TFLOP/s")
    parameters = float(said.split("parameters  ")[1].split()[0].replace(",", ""))
    # fsdp shards everything except biases and norms of heads and neurons.
    assert parameters == pytest.approx(1_557_611_200 * 4 / 16 / 1e6, rel=0.01)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["no-such"], ("'no-such'", "seed")),
        (["seed", "--mesh", "data=4096"], ("8 devices", 4096)),
        (["gpt2-1.5b", "--mesh", "tensor=2"], ("W_E", 50257, "v", "tensor=2")),
        (["gpt2-1.5b", "--mesh", "data=8", "--batch", "12"], ("batch=12", 8)),
        (["seed", "--hardware", "abacus"], ("'abacus'", "h100")),
        (["seed", "--vocab", "0"], ("vocab=0",)),
        (["baby", "--mesh", "data=2"], ("--vocab", "shakespeare", 65)),
        (["gpt2-124m", "--mesh", "data=2"], ("--vocab", "text.tokens")),
        (["seed", "--mesh", "data=100000000"], (100000000,)),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused(capsys: Any, args: list[str], named: Any):
    assert len(jax.devices()) == 8  # JAX is already initialized
    assert main(args) == 1
    check_names(capsys.readouterr().err, *named)


def test_own_bytes_are_those_of_one_shard():
    layout = layout_of("data=2,fsdp=4")
    shape = jax.ShapeDtypeStruct((8, 6), np.float32, sharding=layout.placed("fsdp", None))
    assert own_bytes([shape]) == 2 * 6 * 4
