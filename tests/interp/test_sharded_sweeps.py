"""Sweeps on a mesh: its devices share the patches, each within its memory; the numbers are those of one device."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxformer import Config, shardings
from jaxformer.interp.patching import patch_sweep
from jaxformer.interp.paths import path_patch
from jaxformer.sharding import fitting
from tests.helpers.errors import raises
from tests.helpers.models import NAMED, random_params
from tests.helpers.pairs import close, enough, metric, texts

CONFIG = dataclasses.replace(NAMED["modern"], n_vocab=12)
HEADS = ("layer", "position", "head")


def mesh(*sizes: int, kind: AxisType = AxisType.Auto) -> Mesh:
    """Return a mesh of the first devices."""
    names, number = ("data", "fsdp", "tensor")[: len(sizes)], int(np.prod(sizes))
    kinds = (kind,) * len(sizes)
    return jax.make_mesh(sizes, names, axis_types=kinds, devices=jax.devices()[:number])


def placed(params: Any, config: Config, mesh: Mesh) -> Any:
    """Shard the parameters over the other axes of the mesh."""
    return jax.device_put(params, shardings(config, mesh, fitting(mesh)))


Pair = tuple[jax.Array, jax.Array]


def heads(params: Any, pair: Pair, **options: Any) -> jax.Array:
    """Sweep over every head at every position."""
    return patch_sweep(params, CONFIG, *pair, metric, "z", HEADS, **options)


def paths(params: Any, pair: Pair, **options: Any) -> jax.Array:
    """Patch the paths between all pairs of heads."""
    return path_patch(params, CONFIG, *pair, metric, "k", through_mlps=True, **options)


Swept = Callable[..., jax.Array]


@functools.cache
def given() -> tuple[Any, Pair]:
    """Return a model in float64, and two texts."""
    return random_params(CONFIG, dtype=jnp.float64), texts(CONFIG)


@functools.cache
def on_one(swept: Swept) -> jax.Array:
    """Return the numbers of one device."""
    return swept(*given())


ALL = mesh(2, 2, 2)
"""Two groups of four devices: a group shares the parameters."""


@pytest.mark.slow
@pytest.mark.parametrize("swept", [heads, paths])
def test_a_sweep_on_a_mesh_is_that_of_one_device(swept: Swept, x64):
    """NaN without a path, and no trace of padding cells.

    The same holds with a progress bar, and for sharded parameters without mesh=.
    """
    params, pair = given()
    in_parts, one = placed(params, CONFIG, ALL), on_one(swept)
    found = swept(params, pair, mesh=mesh(8))
    assert found.sharding.is_fully_replicated
    np.testing.assert_allclose(found, one, **close)
    np.testing.assert_allclose(swept(in_parts, pair, mesh=ALL, progress=True), one, **close)
    np.testing.assert_allclose(swept(in_parts, pair), one, **close)


@pytest.mark.slow
def test_a_mesh_of_one_device_gives_the_same_bits(x64):
    np.testing.assert_array_equal(heads(*given(), mesh=mesh(1)), on_one(heads))


@pytest.mark.slow
def test_a_mesh_with_explicit_axes_gives_the_same(x64):
    """Explicit axes are the default of `jax.make_mesh`."""
    found = heads(*given(), mesh=mesh(8, kind=AxisType.Explicit))
    np.testing.assert_allclose(found, on_one(heads), **close)


@pytest.mark.slow
def test_a_sharded_batch_with_logits_at_in_several_chunks(x64):
    params, pair = given()[0], texts(CONFIG, 2)
    options: Any = {"logits_at": jnp.array([-1, 2]), "memory": 120_000}
    expected = heads(params, pair, **options)
    batch = jax.device_put(pair, NamedSharding(ALL, PartitionSpec("data")))
    found = heads(placed(params, CONFIG, ALL), batch, mesh=ALL, **options)
    np.testing.assert_allclose(found, expected, **close)


@pytest.mark.slow
def test_under_jit_vmap_and_grad(x64):
    params, pairs = given()[0], texts(CONFIG, 2)

    def total(params: Any, mesh: Mesh | None) -> jax.Array:
        def swept(clean: jax.Array, corrupted: jax.Array) -> jax.Array:
            given = params, CONFIG, clean, corrupted, metric
            return patch_sweep(*given, "z", ("head",), mesh=mesh)

        return jnp.sin(jax.vmap(swept)(*pairs)).sum()

    slope = jax.jit(jax.grad(total), static_argnums=1)
    expected, found = slope(params, None), slope(placed(params, CONFIG, ALL), ALL)
    jax.tree.map(partial(np.testing.assert_allclose, **close), found, expected)


WIDE = dataclasses.replace(CONFIG, d_model=32, d_mlp=128)


def long_texts() -> Pair:
    """Return texts of 30 tokens, so that streams take most of the memory."""
    clean, corrupted = texts(WIDE)
    return jnp.tile(clean, 6), jnp.tile(corrupted, 6)


def streams(params: Any, pair: Pair, **options: Any) -> jax.Array:
    """Sweep over the streams of two layers at 30 positions."""
    return patch_sweep(params, WIDE, *pair, metric, "resid_pre", **options)


def compiled(params: Any, pair: Pair, **options: Any) -> Any:
    """Compile `streams` to the program that each device runs."""
    return jax.jit(partial(streams, **options)).lower(params, pair).compile()


@pytest.mark.slow
def test_the_devices_divide_the_work_and_the_memory():
    params, pair = random_params(WIDE), long_texts()
    alone, shared = compiled(params, pair), compiled(params, pair, mesh=mesh(8))
    np.testing.assert_allclose(shared(params, pair), alone(params, pair), rtol=1e-4, atol=1e-4)
    # Every device runs the clean and the corrupted run itself.
    assert shared.cost_analysis()["flops"] < alone.cost_analysis()["flops"] / 5
    memory = [program.memory_analysis().temp_size_in_bytes for program in (shared, alone)]
    assert memory[0] < memory[1] / 4


@pytest.mark.slow
def test_memory_is_the_limit_of_each_device():
    params, pair = random_params(WIDE), long_texts()
    with raises(ValueError, "memory=1") as refused:
        streams(params, pair, memory=1, mesh=ALL)
    least = enough(refused.value)
    program = compiled(placed(params, WIDE, ALL), pair, memory=least, mesh=ALL)
    analysis = program.memory_analysis()
    assert analysis.temp_size_in_bytes + analysis.output_size_in_bytes <= least


REFUSED = [
    (3, ("mesh=3", "jax.sharding.Mesh", "jax.make_mesh((8,), ('data',))")),
    (Mesh(np.array(jax.devices()), ("tensor",)), ("mesh", "data", "tensor")),
    (Mesh(np.array(jax.devices()[0]), ()), ("mesh", "data")),
    (mesh(4), ("mesh", "params.W_E", 8, 4, "jax.device_put")),
]


@pytest.mark.parametrize(("wrong", "named"), REFUSED)
def test_a_wrong_mesh_is_refused(wrong: Any, named: tuple):
    params, pair = placed(random_params(CONFIG), CONFIG, ALL), texts(CONFIG)
    given = params, CONFIG, *pair, metric
    for swept in (partial(inspect.unwrap(patch_sweep), site="z"), inspect.unwrap(path_patch)):
        with raises(ValueError, *named):
            swept(*given, mesh=wrong)
