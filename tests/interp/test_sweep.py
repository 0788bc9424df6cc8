"""The engine of sweeps: a narrow last layer changes nothing at the places read, and columns hold every cell once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxformer import Compute, Config
from jaxformer.interp.edit import at, chain
from jaxformer.interp.engine.climb import spread
from jaxformer.interp.engine.sweep import LANDINGS, _columns
from jaxformer.model.kernels import KERNELS
from jaxformer.model.sites import WHOLE, Edit, keep, shown
from jaxformer.model.tap import Tap
from jaxformer.model.transformer import block
from tests.helpers.examples import examples
from tests.helpers.models import NAMED, compiled_flops, configs, every_model, random_params

LENGTH = 5
READ = jnp.array([-1, 1])
close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def last_block(params, config: Config, state, edit: Edit, at=None, kernel: Any = "einsum"):
    """The stream after the last layer, at some places; its edit is written for all."""
    own = jax.tree.map(lambda stacked: stacked[-1], params.blocks)
    positions = jnp.arange(len(state), dtype=jnp.int32)
    edit = edit if at is None else spread(edit, at, len(state))
    tap = Tap((), edit, jnp.int32(config.n_layers - 1))
    how: Any = {"layer": jnp.int32(config.n_layers - 1), "compute": Compute(kernel=kernel)}
    return block(own, config, state, positions, None, tap=tap, at=at, **how)[0]


@pytest.mark.slow
@examples(8)
@given(config=configs().filter(lambda config: config.n_layers > 0))
def test_an_edit_of_all_sites_acts_in_a_narrow_layer_as_in_a_whole_one(config: Config):
    with jax.enable_x64(True):
        params, last = random_params(config, dtype=jnp.float64), config.n_layers - 1
        state = jnp.sin(jnp.arange(LENGTH * config.d_model).reshape(LENGTH, -1))
        # A change of its own for each entry of a value, so that a misplaced row is seen.
        sites = (site for site in shown(config) if site not in WHOLE)
        edit = chain(*(at(site, last, lambda x: 1.2 * x + jnp.tanh(x)) for site in sites))
        run = jax.jit(last_block, static_argnums=1)
        expected = run(params, config, state, edit)[READ]
        assert np.isfinite(expected).all()
        found = run(params, config, state, edit, READ)
        np.testing.assert_allclose(found, expected, **close)


@pytest.mark.slow
@every_model
def test_every_kernel_can_run_a_narrow_layer(name: str):
    config = NAMED[name]
    params, state = random_params(config), jnp.sin(jnp.arange(40.0).reshape(LENGTH, 8))
    expected = last_block(params, config, state, keep)[READ]
    for kernel in KERNELS:
        if kernel == "fused" and config.attention_cap is not None:
            continue  # refused
        found = last_block(params, config, state, keep, READ, kernel)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_place_that_is_not_there_is_nan_inside_traced_code():
    config = NAMED["modern"]
    params, state = random_params(config), jnp.ones((LENGTH, 8))
    run = jax.jit(lambda at: last_block(params, config, state, keep, at))
    found = np.isnan(run(jnp.array([-1, 5, -6])))
    np.testing.assert_array_equal(found.all(axis=1), [False, True, True])
    np.testing.assert_array_equal(found.any(axis=1), [False, True, True])


def test_narrow_saves_most_of_a_layer():
    config = Config(n_layers=1, d_model=64, n_heads=4, d_head=16, d_mlp=256, n_vocab=2)
    params, state = random_params(config), jnp.ones((64, 64))
    whole = compiled_flops(lambda params: last_block(params, config, state, keep), params)
    last = jnp.array([-1])
    narrow = compiled_flops(lambda params: last_block(params, config, state, keep, last), params)
    assert narrow < 0.3 * whole  # keys and values are 2 parts of 12


@pytest.mark.parametrize(
    ("number", "parts"),
    [(1, 1), (2, 1), (7, 1), (1000, 1), (1, 8), (2, 4), (7, 3), (1000, 8), (1, 100)],
)
def test_every_cell_is_in_one_column_and_joins_no_later_than_its_layer(number: int, parts: int):
    """On a mesh, each column is cut into equal parts, one for each group of devices."""
    layers = np.sort(np.random.default_rng(0).integers(0, 20, 61))
    cells = np.stack([layers, np.arange(61)], axis=1).astype(np.int32)
    landings, columns, order = _columns(cells, number, parts)
    assert len(landings) == len(columns) <= min(LANDINGS, -(-61 // parts))
    assert len(columns[0]) <= number
    np.testing.assert_array_equal(np.sort(order[order >= 0]), np.arange(61))
    own = [column.reshape(len(column), parts, -1, 2) for column in columns]
    joined = np.concatenate(own, axis=2).reshape(*order.shape, 2)
    np.testing.assert_array_equal(joined[order >= 0], cells[order[order >= 0]])
    assert (joined[order < 0] == -1).all()
    for landing, until, column in zip(landings, (*landings[1:], 20), columns, strict=True):
        inside = column[..., 0][column[..., 0] >= 0]
        assert ((landing <= inside) & (inside < until)).all()
