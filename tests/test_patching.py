"""Sweeps: each number is that of the naive loop, one whole edited pass per part."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxformer import Compute, Config, forward, init
from jaxformer.interp.cells import measure
from jaxformer.interp.edit import patch, patch_layers
from jaxformer.interp.patching import patch_sweep
from jaxformer.sites import AXES, WHOLE, shown
from tests.models import NAMED, SEED, configs, random_params, random_tokens

LENGTH = 5
close = dict(rtol=1e-9, atol=1e-9)


def texts(config: Config, *batch: int) -> tuple[jax.Array, jax.Array]:
    """Two runs that differ in a token in the middle, and one at the end."""
    corrupted = random_tokens(config, LENGTH * int(np.prod(batch))).reshape(*batch, LENGTH)
    clean = corrupted.at[..., 1].add(1).at[..., -1].add(2) % config.n_vocab
    return clean.astype(jnp.int32), corrupted


def metric(logits: jax.Array) -> jax.Array:
    """Not linear, and of all positions."""
    return jnp.sin(logits).sum() + logits[..., -1, 2].mean() - logits[..., -1, 1].mean()


NAMES = {"t": "position", "s": "source", "n": "head", "k": "head", "f": "neuron"}


def everywhere(site: str) -> tuple[str, ...]:
    """All names that the site's axes have."""
    own = tuple(NAMES[letter] for letter in AXES[site].split() if letter in NAMES)
    return own if site in WHOLE else ("layer", *own)


def naive(params: Any, config: Config, clean: Any, corrupted: Any, site: str, by: tuple[str, ...]):
    """One edited pass per part, compiled once."""
    values = forward(params, config, clean, capture=(site,)).activations[site]

    @jax.jit
    def one(index):
        index = dict(zip(by, index, strict=True))
        layer = index.pop("layer", None)
        if layer is not None:
            edit = patch(site, layer, index, values[layer])
        elif site in WHOLE:
            edit = patch(site, None, index, values)
        else:
            edit = patch_layers(site, index, values)
        return metric(forward(params, config, corrupted, edit=edit).logits)

    letters = {name: letter for letter, name in NAMES.items() if letter in AXES[site]}
    sizes = {"l": config.n_layers, "t": LENGTH, "s": LENGTH, **config.sizes, "l": config.n_layers}
    shape = [sizes["l" if name == "layer" else letters[name]] for name in by]
    cells = np.array(list(np.ndindex(*shape)), np.int32).reshape(-1, len(by))
    return np.array([one(jnp.asarray(cell)) for cell in cells]).reshape(shape)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("modern", ("k", "pattern", "post")),
        ("classic", ("resid_mid", "head_out", "pos_embed")),
        ("parallel", ("resid_pre", "mlp_out", "logits")),
    ],
)
def test_a_sweep_is_the_naive_loop(name: str, sites: tuple[str, ...], x64):
    config = NAMED[name]
    params = random_params(config, dtype=jnp.float64)
    clean, corrupted = texts(config)
    for site in sites:
        by = everywhere(site)
        found = patch_sweep(params, config, clean, corrupted, metric, site, by)
        np.testing.assert_allclose(
            found, naive(params, config, clean, corrupted, site, by), **close, err_msg=site
        )


def test_axes_may_be_left_whole_and_come_in_any_order(x64):
    config = NAMED["modern"]
    params = random_params(config, dtype=jnp.float64)
    clean, corrupted = texts(config)
    for by in ((), ("head",), ("position", "layer"), ("head", "layer", "position"), ("layer",)):
        found = patch_sweep(params, config, clean, corrupted, metric, "z", by)
        np.testing.assert_allclose(
            found, naive(params, config, clean, corrupted, "z", by), **close, err_msg=str(by)
        )


@settings(max_examples=6)
@given(config=configs())
def test_any_model_can_be_swept(config: Config):
    with jax.enable_x64(True):
        params = random_params(config, dtype=jnp.float64)
        clean, corrupted = texts(config)
        site = "resid_post" if config.n_layers else "embed"
        by = everywhere(site)
        found = patch_sweep(params, config, clean, corrupted, metric, site, by)
        np.testing.assert_allclose(found, naive(params, config, clean, corrupted, site, by), **close)
