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
from jaxformer.interp.edit import chain, patch, patch_layers
from jaxformer.interp.patching import patch_sweep
from jaxformer.interp.paths import path_patch
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
    sizes = {"t": LENGTH, "s": LENGTH, **config.sizes}
    shape = [sizes["l" if name == "layer" else letters[name]] for name in by]
    cells = [jnp.array(cell, jnp.int32) for cell in np.ndindex(*shape)]
    return np.array([one(cell) for cell in cells]).reshape(shape)


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
        np.testing.assert_allclose(
            found, naive(params, config, clean, corrupted, site, by), **close
        )


def naive_path(
    params: Any,
    config: Config,
    clean: Any,
    corrupted: Any,
    kind: str,
    sender: Any,
    reader: Any,
    mlps: bool,
) -> float:
    """By three whole passes: freeze every head but the sender, look at what the reader then reads, put that in."""
    sites = ("head_out", "mlp_out", kind)
    before = forward(params, config, corrupted, capture=sites).activations
    new = forward(params, config, clean, capture=("head_out",)).activations["head_out"]
    heads = before["head_out"].at[sender[0], :, sender[1]].set(new[sender[0], :, sender[1]])
    frozen = [patch_layers("head_out", None, heads)]
    if config.d_mlp and not mlps:
        frozen.append(patch_layers("mlp_out", None, before["mlp_out"]))
    seen = forward(params, config, corrupted, capture=(kind,), edit=chain(*frozen)).activations[
        kind
    ]
    edit = patch(kind, reader[0], {"head": reader[1]}, seen[reader[0]])
    return metric(forward(params, config, corrupted, edit=edit).logits)


@pytest.mark.parametrize("mlps", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("modern", "k"), ("classic", "q"), ("parallel", "v")])
def test_a_path_is_three_passes(name: str, kind: str, mlps: bool, x64):
    config = dataclasses.replace(NAMED[name], n_layers=3)
    params = random_params(config, dtype=jnp.float64)
    clean, corrupted = texts(config)
    found = path_patch(params, config, clean, corrupted, metric, kind, through_mlps=mlps)
    readers = config.sizes["n" if kind == "q" else "k"]
    assert found.shape == (3, 4, 3, readers)
    no_path = np.arange(3)[:, None] >= np.arange(3)
    np.testing.assert_array_equal(np.isnan(found).all(axis=(1, 3)), no_path)
    np.testing.assert_array_equal(np.isnan(found).any(axis=(1, 3)), no_path)
    one = jax.jit(lambda s, r: naive_path(params, config, clean, corrupted, kind, s, r, mlps))
    for sender, reader in (((0, 1), (1, 0)), ((0, 3), (2, 1)), ((1, 2), (2, readers - 1))):
        expected = one(jnp.array(sender), jnp.array(reader))
        np.testing.assert_allclose(found[*sender, *reader], expected, **close)
