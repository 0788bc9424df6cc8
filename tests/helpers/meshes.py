"""Small models and steps for the tests on meshes of eight virtual devices."""

import dataclasses
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxformer import Config
from train.compiled import many_steps
from train.data.batches import Batch
from train.devices.layout import Layout, lay_out
from train.optimizer import make_optimizer
from train.recipe import Architecture, Optimizer, Recipe
from train.run import fresh_state, step_options

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
    "all three, the batch by data alone": ("data=2,fsdp=2,tensor=2", ("batch=data",)),
    "positions": ("data=2,sequence=4", ()),
    "stream in parts, layers in parts": ("tensor=4,stage=2", ("t=tensor", "l=stage")),
}


def recipe_of(config: Architecture, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"optimizer": Optimizer(warmup=1, learning_rate=1e-2)} | changes
    return Recipe(config=config, context=8, batch=8, steps=4, chunk=4, validate_every=4, **settings)


def layout_of(mesh: str | None, rules: Iterable[str] = ()) -> Layout:
    """On as many of the eight devices as the mesh has."""
    return lay_out(mesh, tuple(rules), jax.devices()[: size_of(mesh)])


def size_of(mesh: str | None) -> int:
    """Its devices; one, without a mesh."""
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
    members = [None] if recipe.seeds > 1 else []
    batches = layout.put(batches_for(recipe), None, *members, layout.batch)
    state = fresh_state(recipe, config)
    if layout.mesh is not None:
        state = jax.device_put(state, layout.state(config, state))
    state, history = many_steps(
        config, optimizer, step_options(recipe), layout, members=recipe.seeds
    )(state, batches)
    return state, jax.tree.map(np.asarray, history)
