"""Training on a mesh of eight virtual devices: the numbers of one device, in the memory of an eighth of it."""

import dataclasses
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxformer import Config, constrain, partition, shardings
from jaxformer.sharding import RULES, fitting
from tests.models import SEED
from tests.runs import check_refused, folder_of, numbers, options, stop_at
from tests.tuned import foreign, text_at, tuning
from train.__main__ import main, parse
from train.batches import Batch
from train.checkpoints import Checkpoints
from train.collectives import collectives, compile_to_text, totals, with_reduce_scatter
from train.data import open_data
from train.layout import Layout, lay_out
from train.optimizer import make_optimizer
from train.recipe import Architecture, Optimizer, Recipe
from train.run import Run, batch_shapes, draw, fresh_state, how_of, state_shapes
from train.start import open_recipe
from train.step import How, many_steps

pytestmark = pytest.mark.usefixtures("standard_promotion")

MODERN_8 = Architecture(
    n_layers=2, d_model=16, n_heads=8, d_head=4, d_mlp=32, n_vocab=24, n_kv_heads=4, position="rotary",
    norm="rms", qk_norm="head", activation="silu", gated=True,
)  # fmt: skip
CLASSIC_8 = dataclasses.replace(
    MODERN_8, n_kv_heads=None, position="learned", n_context=8, norm="layer", qk_norm="none",
    activation="gelu", gated=False, bias="all", tied=True,
)  # fmt: skip
LAYOUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "data parallel": ("data=8", ()),
    "fully sharded": ("fsdp=8", ()),
    "tensor parallel": ("data=2,tensor=4", ()),
    "all three": ("data=2,fsdp=2,tensor=2", ()),
    "positions": ("data=2,sequence=4", ()),
    "stream in parts, layers in parts": ("tensor=4,stage=2", ("t=tensor", "l=stage")),
}


def recipe_of(config: Architecture, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"optimizer": Optimizer(warmup=1, learning_rate=1e-2)} | changes
    return Recipe(config=config, context=8, batch=8, steps=4, chunk=4, validate_every=4, **settings)


def layout_of(mesh: str | None, rules: Iterable[str] = ()) -> Layout:
    """On as many of the eight devices as the mesh has."""
    return lay_out(mesh, tuple(rules), jax.devices()[: _size(mesh)])


def _size(mesh: str | None) -> int:
    return int(np.prod([int(part.split("=")[1]) for part in (mesh or "x=1").split(",")]))


def batches_for(recipe: Recipe) -> Batch:
    """Random windows of some steps, in which not all targets count."""
    rng, members = np.random.default_rng(0), () if recipe.seeds == 1 else (recipe.seeds,)
    shape = (recipe.steps, *members, recipe.batch, recipe.context + 1)
    windows = rng.integers(0, recipe.config.n_vocab, shape).astype(np.int32)
    return Batch(windows, rng.random(windows[..., 1:].shape) < 0.7)


@lru_cache
def trained(recipe: Recipe, layout: Layout) -> tuple[Any, dict[str, Any]]:
    """The last state, and each step's loss and gradient norm."""
    config: Config = recipe.config
    optimizer = make_optimizer(config, recipe.optimizer, recipe.steps)
    how = How(compute=recipe.compute, accumulate=recipe.accumulate, layout=layout)
    members = [None] if recipe.seeds > 1 else []
    batches = layout.put(batches_for(recipe), None, *members, layout.batch)
    state = fresh_state(recipe, config)
    if layout.mesh is not None:
        state = jax.device_put(state, layout.state(config, state))
    state, history = many_steps(config, optimizer, how, members=recipe.seeds)(state, batches)
    return state, jax.tree.map(np.asarray, history)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_loss_curve_is_that_of_one_device(name: str):
    recipe, layout = recipe_of(MODERN_8), layout_of(*LAYOUTS[name])
    layout.check(recipe, recipe.config)
    state, history = trained(recipe, layout)
    alone, expected = trained(recipe, Layout())
    for metric in ("loss", "gradient_norm"):
        np.testing.assert_allclose(history[metric], expected[metric], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        state.params, alone.params,
    )  # fmt: skip
    for array in jax.tree.leaves(state):
        assert array.sharding.device_set == set(jax.devices())


def test_first_values_do_not_depend_on_the_mesh():
    recipe = recipe_of(CLASSIC_8)
    laid, alone = (
        fresh_state(recipe, recipe.config, layout=where)
        for where in (layout_of("fsdp=4,tensor=2"), Layout())
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), laid, alone)


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({"optimizer": Optimizer(name="muon", warmup=1), "accumulate": 2}, CLASSIC_8),
        ({"seeds": 2}, CLASSIC_8),
    ],
)
def test_so_it_is_with_muon_in_parts_and_side_by_side(
    changes: dict[str, Any], config: Architecture
):
    recipe, layout = recipe_of(config, **changes), layout_of(*LAYOUTS["all three"])
    history, expected = (trained(recipe, where)[1] for where in (layout, Layout()))
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_in_64_bits_many_steps_leave_the_very_same_parameters():
    """In 32 bits training amplifies rounding, on a mesh as anywhere."""
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
        after.append(many_steps(recipe.config, optimizer, how_of(recipe, layout))(state, batches))
    (alone, history), (laid, other) = after
    np.testing.assert_allclose(other["loss"], history["loss"], rtol=1e-6)
    for one, same in zip(*map(jax.tree.leaves, (laid.params, alone.params)), strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-8, atol=1e-10)


def test_fully_sharded_each_device_holds_an_eighth_of_parameters_and_moments():
    recipe = recipe_of(MODERN_8)
    state, _ = trained(recipe, layout_of(*LAYOUTS["fully sharded"]))
    for tree in (state.params, state.optimizer):
        with_d = [x for x in jax.tree.leaves(tree) if 16 in x.shape]
        assert len(with_d) >= 10
        for array in with_d:
            assert array.addressable_shards[0].data.size * 8 == array.size


# --- rules ---

RULES_OF_THE_ISSUE = {
    "batch": "data", "d": "fsdp", "n": "tensor", "k": "tensor", "f": "tensor", "v": "tensor",
}  # fmt: skip


def test_rules_say_where_each_axis_goes():
    layout = partition(MODERN_8, RULES_OF_THE_ISSUE)
    assert tuple(layout.blocks.attn.W_Q) == (None, "fsdp", "tensor", None)
    assert tuple(layout.blocks.attn.W_O) == (None, "tensor", None, "fsdp")
    assert layout.blocks.mlp is not None
    assert tuple(layout.blocks.mlp.W_out) == (None, "tensor", "fsdp")
    assert tuple(layout.W_E) == ("tensor", "fsdp")


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"x": "data"}, "no axis 'x'; the axes are"),
        ({"d": "data", "n": "data"}, "blocks.attn.W_Q would have both d and n on the mesh axis 'data'"),
        ({"d": "data", "v": ("tensor", "data")}, "W_E would have both v and d on the mesh axis 'data'"),
        ({"k": "data"}, "blocks.attn.W_K has 4 along k, which does not divide into 8 parts"),
        ({"h": "other"}, "the rule h=other asks for a mesh axis other; this has data=8"),
    ],
)  # fmt: skip
def test_rules_that_do_not_fit_are_refused(rules: Any, sentence: str):
    mesh = layout_of("data=8").mesh
    assert mesh is not None
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        shardings(MODERN_8, mesh, rules)


def test_the_usual_rules_are_those_of_the_axes_that_a_mesh_has():
    mesh = layout_of("fsdp=4,tensor=2").mesh
    assert mesh is not None
    assert fitting(mesh, RULES) == {
        "batch": "fsdp", "d": "fsdp", "n": "tensor", "k": "tensor", "f": "tensor", "v": "tensor",
    }  # fmt: skip


def test_activations_follow_their_letters_and_never_an_axis_twice():
    layout = layout_of("data=2,tensor=4", ("t=tensor",))
    edit: Any = constrain(layout.mesh, dict(layout.rules))  # pyright: ignore[reportArgumentType]
    assert tuple(edit.places("resid_post", (8, 16))) == ("tensor", None)
    assert tuple(edit.places("q", (8, 8, 4))) == (None, "tensor", None)
    assert tuple(edit.places("logits", (8, 24))) == (None, "tensor")
    assert tuple(edit.places("resid_post", (7, 16))) == (None, None)  # 7 does not divide


# --- runs ---


def run_of(corpus: Path, layout: Layout, *extra: str) -> Run:
    recipe = parse(options(corpus, "x", 10, *extra)).recipe
    data = open_data(recipe)
    config = recipe.config.for_tokenizer(data.tokenizer)
    return Run(recipe, config, data, corpus.parent, Console(), layout=layout)


@pytest.mark.parametrize(
    "extra",
    [(), ("--seeds", "2"), ("--order", "shuffled"), ("--corpus", "brackets", "--context", "13")],
)
def test_batches_on_a_mesh_are_those_of_one_device(corpus: Path, extra: tuple[str, ...]):
    layout = layout_of("data=2,fsdp=2")
    laid, alone = (
        draw(run_of(corpus, where, *extra), np.arange(3, 6)) for where in (layout, Layout())
    )
    jax.tree.map(np.testing.assert_array_equal, laid, alone)
    parts = [shard.data.shape[-2] for shard in laid.windows.addressable_shards]
    assert parts == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [("data=2,fsdp=4", None), (None, "fsdp=2,tensor=2"), ("fsdp=8", "data=2,tensor=4")],
    ids=["8 to 1", "1 to 4", "fsdp to tensor"],
)
def test_checkpoints_move_between_meshes_bit_by_bit(
    tmp_path: Path, one: str | None, other: str | None
):
    recipe = recipe_of(MODERN_8)
    state, _ = trained(recipe, layout_of(one))
    checkpoints = Checkpoints(tmp_path)
    try:
        checkpoints.save(state)
        checkpoints.finish()
        like = state_shapes(recipe, recipe.config, layout_of(other))
        restored = checkpoints.restore(like)
    finally:
        checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    for array, shape in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        if other is not None:
            assert array.sharding == shape.sharding
        assert len(array.sharding.device_set) == _size(other)


def test_a_run_begun_on_a_mesh_goes_on_without_and_is_the_run_of_one_device(corpus: Path):
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
    ("extra", "sentence"),
    [
        (("--mesh", "data=3"), "--mesh data=3 is of 3 devices, and there are 8 (cpu)"),
        (("--mesh", "data"), "mesh='data' is no mesh; write AXIS=SIZE"),
        (("--mesh", "data=2,data=4"), "has the axis data twice"),
        (("--mesh", "data=8"), "leaves 4 sequences, which do not divide among the 8 devices"),
        (("--mesh", "tensor=8"), "does not divide into 8 parts (tensor=8)"),
        (("--mesh", "sequence=8"), "context=12 does not divide among the 8 devices along sequence"),
        (("--mesh", "fsdp=8", "--rules", "d:fsdp"), "'d:fsdp' is no rule; write AXIS=MESH-AXIS"),
        (("--mesh", "fsdp=8", "--rules", "d=x"), "the rule d=x asks for a mesh axis x"),
        (("--rules", "d=fsdp"), "give --mesh too"),
        (
            ("--mesh", "dat=8"),
            "nothing lies along dat of --mesh dat=8; the axes with rules of their own are data",
        ),
        (("--mesh", "data=8", "--rules", "batch=data+data"), "names a mesh axis twice"),
        (("--mesh", "data=8", "--rules", "t=data"), "lay both t and batch along data"),
        (("--mesh", "data=4294967296,fsdp=4294967296"), "is of 18446744073709551616 devices"),
    ],
)
def test_what_does_not_fit_is_refused(corpus: Path, capsys: Any, extra: Any, sentence: str):
    command = options(corpus, "refused", 10, "--tokenizer", "bytes", *extra)
    check_refused(capsys, command, sentence)
    assert not folder_of(command).exists()


def test_without_a_mesh_a_step_has_no_constraint_at_all():
    recipe = recipe_of(dataclasses.replace(Architecture(**dataclasses.asdict(SEED)), n_vocab=24))
    optimizer = make_optimizer(recipe.config, recipe.optimizer, recipe.steps)
    state, batches = fresh_state(recipe, recipe.config), batches_for(recipe)
    text = str(jax.make_jaxpr(many_steps(recipe.config, optimizer))(state, batches))
    assert "sharding_constraint" not in text


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fully_sharded_gradients_are_summed_once_a_part_and_matrices_fetched_twice(accumulate: int):
    """Of the blocks, in whose loops an array of d is gathered for each pass and no more."""
    recipe, layout = recipe_of(MODERN_8, accumulate=accumulate), layout_of("fsdp=4")
    recipe = dataclasses.replace(recipe, steps=1, chunk=1, validate_every=1)
    optimizer = make_optimizer(recipe.config, recipe.optimizer, 1)
    state, batches = state_shapes(recipe, recipe.config, layout), batch_shapes(recipe, layout)
    steps: Any = many_steps(recipe.config, optimizer, how_of(recipe, layout))
    found = collectives(compile_to_text(steps.lower(state, batches))[1])
    blocks = jax.tree.leaves(state.params.blocks)
    whole = sum(4 * x.size for x in blocks if 16 in x.shape)
    looped = [one for one in found if one.times == accumulate * recipe.config.n_layers]
    moved = totals(with_reduce_scatter(looped))
    assert moved["all-gather"].payload_bytes <= accumulate * 2.1 * whole
    assert moved["reduce-scatter"].payload_bytes <= accumulate * 1.01 * whole
    assert moved["reduce-scatter"].payload_bytes >= accumulate * 0.9 * whole


def test_a_model_without_layers_trains_on_a_mesh_and_goes_on(tmp_path: Path):
    flat = dataclasses.replace(MODERN_8, n_layers=0)
    recipe, layout = recipe_of(flat), layout_of("data=2,fsdp=4")
    state, history = trained(recipe, layout)
    np.testing.assert_allclose(history["loss"], trained(recipe, Layout())[1]["loss"], rtol=1e-5)
    checkpoints = Checkpoints(tmp_path)
    try:
        checkpoints.save(state)
        checkpoints.finish()
        restored = checkpoints.restore(state_shapes(recipe, flat, layout))
    finally:
        checkpoints.close()
    batches = layout.put(batches_for(recipe), None, layout.batch)
    optimizer = make_optimizer(flat, recipe.optimizer, recipe.steps)
    program: Any = many_steps(flat, optimizer, how_of(recipe, layout)).lower(restored, batches)  # pyright: ignore[reportFunctionMemberAccess]
    steps = program.compile()
    after, _ = steps(restored, batches)
    assert int(steps(after, batches)[0].step) == 12


def test_a_model_to_start_from_is_laid_on_the_mesh_too(tmp_path: Path):
    start, text = foreign(tmp_path / "model", "llama-plain"), text_at(tmp_path)
    recipe = parse(tuning(start, text, tmp_path, "x", "--steps", "10")).recipe
    layout = layout_of("data=4,tensor=2")
    laid, alone = open_recipe(recipe, layout), open_recipe(recipe)
    assert laid.sha256 == alone.sha256
    state = fresh_state(laid.recipe, laid.config, laid.first, layout)
    jax.tree.map(np.testing.assert_array_equal, state.params, alone.first)
    W_Q = state.params.blocks.attn.W_Q
    assert {shard.data.size * 2 for shard in W_Q.addressable_shards} == {W_Q.size}
