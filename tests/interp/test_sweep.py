"""The engine of sweeps: a last layer run only at logits_at gives the same there, and chunks hold every cell once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxformer import Compute, Config
from jaxformer.interp.edit import at, chain
from jaxformer.interp.engine.last_layer import block_at
from jaxformer.interp.engine.memory import MAX_ENTRY_LAYERS
from jaxformer.interp.engine.sweep import _cut
from jaxformer.model.attention import KERNELS
from jaxformer.model.tap import Tap
from jaxformer.model.transformer import block
from jaxformer.sites import MODEL_SITES, EditFunction, available_sites, identity
from tests.helpers.examples import examples
from tests.helpers.models import NAMED, compiled_flops, configs, every_model, random_params

LENGTH = 5
LOGITS_AT = jnp.array([-1, 1])
close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def last_block(params, config: Config, state, edit: EditFunction, at=None, kernel: Any = "einsum"):
    """The stream after the last layer, at some positions; the edit is that of all positions."""
    own, last = jax.tree.map(lambda stack: stack[-1], params.blocks), config.n_layers - 1
    compute = Compute(kernel=kernel)
    if at is not None:
        return block_at(own, config, state, at, edit, jnp.int32(last), compute)
    return block(
        own, config, state, layer=last, tap=Tap((), edit, jnp.int32(last)), compute=compute
    )


@pytest.mark.slow
@examples(8)
@given(config=configs().filter(lambda config: config.n_layers > 0))
def test_an_edit_of_all_sites_acts_the_same_in_a_narrow_layer(config: Config):
    with jax.enable_x64(True):
        params, last = random_params(config, dtype=jnp.float64), config.n_layers - 1
        state = jnp.sin(jnp.arange(LENGTH * config.d_model).reshape(LENGTH, -1))
        # Each entry of a value changes differently, so that a misplaced row shows.
        sites = (site for site in available_sites(config) if site not in MODEL_SITES)
        edit = chain(*(at(site, last, lambda x: 1.2 * x + jnp.tanh(x)) for site in sites))
        run = jax.jit(last_block, static_argnums=1)
        expected = run(params, config, state, edit)[LOGITS_AT]
        assert np.isfinite(expected).all()
        found = run(params, config, state, edit, LOGITS_AT)
        np.testing.assert_allclose(found, expected, **close)


@pytest.mark.slow
@every_model
def test_every_kernel_can_run_a_narrow_layer(name: str):
    config = NAMED[name]
    params, state = random_params(config), jnp.sin(jnp.arange(40.0).reshape(LENGTH, 8))
    expected = last_block(params, config, state, identity)[LOGITS_AT]
    for kernel in KERNELS:
        if kernel == "fused" and config.attention_soft_cap is not None:
            continue  # refused
        found = last_block(params, config, state, identity, LOGITS_AT, kernel)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_traced_position_out_of_range_is_nan():
    config = NAMED["modern"]
    params, state = random_params(config), jnp.ones((LENGTH, 8))
    run = jax.jit(lambda at: last_block(params, config, state, identity, at))
    found = np.isnan(run(jnp.array([-1, 5, -6])))
    np.testing.assert_array_equal(found.all(axis=1), [False, True, True])
    np.testing.assert_array_equal(found.any(axis=1), [False, True, True])


def test_a_narrow_layer_saves_most_of_the_work():
    config = Config(n_layers=1, d_model=64, n_heads=4, d_head=16, d_mlp=256, n_vocab=2)
    params, state = random_params(config), jnp.ones((64, 64))
    full = compiled_flops(lambda params: last_block(params, config, state, identity), params)
    last = jnp.array([-1])
    narrow = compiled_flops(
        lambda params: last_block(params, config, state, identity, last), params
    )
    assert narrow < 0.3 * full  # keys and values are 2/12 of a layer


@pytest.mark.parametrize(
    ("number", "shards"),
    [(1, 1), (2, 1), (7, 1), (1000, 1), (1, 8), (2, 4), (7, 3), (1000, 8), (1, 100)],
)
def test_every_cell_is_in_one_chunk_and_enters_no_later_than_its_layer(number: int, shards: int):
    """On a mesh, each chunk is cut into equal shards, one for each group of devices."""
    layers = np.sort(np.random.default_rng(0).integers(0, 20, 61))
    cells = np.stack([layers, np.arange(61)], axis=1).astype(np.int32)
    entry_layers, chunks, order = _cut(cells, number, shards)
    assert len(entry_layers) == len(chunks) <= min(MAX_ENTRY_LAYERS, -(-61 // shards))
    assert len(chunks[0]) <= number
    np.testing.assert_array_equal(np.sort(order[order >= 0]), np.arange(61))
    by_shard = [chunk.reshape(len(chunk), shards, -1, 2) for chunk in chunks]
    joined = np.concatenate(by_shard, axis=2).reshape(*order.shape, 2)
    np.testing.assert_array_equal(joined[order >= 0], cells[order[order >= 0]])
    assert (joined[order < 0] == -1).all()
    for entry, until, chunk in zip(entry_layers, (*entry_layers[1:], 20), chunks, strict=True):
        inside = chunk[..., 0][chunk[..., 0] >= 0]
        assert ((entry <= inside) & (inside < until)).all()
