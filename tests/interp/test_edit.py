"""Edits as data: each equals a line of numpy, and refuses a site, layer or index that does not exist."""

import inspect
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Compute, forward, generate, stream_tokens
from jaxformer.interp.edit import (
    ablate,
    at,
    chain,
    freeze_pattern,
    knock_out,
    patch,
    patch_layers,
    steer,
)
from jaxformer.interp.engine.axes import checked, part
from jaxformer.sites import SITES
from tests.helpers.errors import raises
from tests.helpers.models import ATTENTION_ONLY, MODERN, SEED, random_params, random_tokens

PARAMS = random_params(MODERN)
TOKENS = random_tokens(MODERN, 5)
EVERY = ("resid_pre", "k", "pattern", "z", "post", "mlp_out")


@jax.jit
def seen(edit: Any) -> dict:
    """Run with an edit, which as a pytree may be an argument of a compiled function."""
    return forward(PARAMS, MODERN, TOKENS, edit=edit, capture=EVERY).activations


PLAIN = forward(PARAMS, MODERN, TOKENS, capture=EVERY).activations


def changed(found: dict, site: str) -> np.ndarray:
    return np.asarray(found[site] != PLAIN[site])


def test_a_mask_equals_numpy_s_index():
    shape = (5, 2, 4)
    two = {"position": jnp.array([0, 2]), "head": 0}
    for index, where in (
        ({}, np.s_[:]), ({"position": 3}, np.s_[3]), ({"head": 1}, np.s_[:, 1]), (two, np.s_[[0, 2], 0])
    ):  # fmt: skip
        expected = np.zeros(shape, bool)
        expected[where] = True
        np.testing.assert_array_equal(np.broadcast_to(part("k", shape, index), shape), expected)


def test_a_patch_changes_only_its_part():
    new = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 4)), jnp.float32)
    found = seen(patch("k", 1, {"position": 3, "head": 1}, new))
    expected = PLAIN["k"].at[1, 3, 1].set(new[3, 1])
    np.testing.assert_array_equal(found["k"], expected)
    assert not changed(found, "k")[0].any()
    assert changed(found, "mlp_out")[1].any()


@pytest.mark.slow
def test_ablations_put_zero_or_a_mean():
    assert (seen(ablate("z", 0, head=2))["z"][0, :, 2] == 0).all()
    mean = PLAIN["post"].mean(axis=1)
    found = seen(ablate("post", 1, neuron=3, position=2, to=mean[1]))["post"]
    np.testing.assert_array_equal(found, PLAIN["post"].at[1, 2, 3].set(mean[1, 3]))
    assert (seen(ablate("mlp_out"))["mlp_out"] == 0).all()  # in every layer


@pytest.mark.slow
def test_steering_adds_a_direction():
    direction = jnp.arange(8, dtype=jnp.float32)
    found = seen(steer(1, direction, -2.0, position=4))["resid_pre"]
    np.testing.assert_allclose(found, PLAIN["resid_pre"].at[1, 4].add(-2 * direction), rtol=1e-6)
    everywhere = seen(steer(0, direction))["resid_pre"][0]
    np.testing.assert_allclose(everywhere, PLAIN["resid_pre"][0] + direction, rtol=1e-6)
    compute = Compute(dtype="bfloat16")
    narrow = forward(PARAMS, MODERN, TOKENS, edit=steer(0, direction), compute=compute)
    assert jnp.isfinite(narrow.logits).all()


def test_a_frozen_pattern_is_that_of_another_run():
    other = forward(PARAMS, MODERN, TOKENS[::-1], capture=("pattern",)).activations["pattern"]
    np.testing.assert_array_equal(seen(freeze_pattern(other))["pattern"], other)


def test_a_knocked_out_key_gets_no_attention():
    found = seen(knock_out(4, jnp.array([1, 2]), layer=1))["pattern"]
    assert (found[1, :, 4, 1:3] == 0).all()
    np.testing.assert_allclose(found.sum(-1), np.ones_like(found.sum(-1)), rtol=1e-6)
    np.testing.assert_array_equal(found[0], PLAIN["pattern"][0])
    np.testing.assert_array_equal(found[1, :, :4], PLAIN["pattern"][1, :, :4])


def test_a_chain_applies_edits_in_order():
    direction = jnp.ones(8)
    both = seen(chain(steer(1, direction), at("resid_pre", 1, lambda value: 2 * value)))
    np.testing.assert_allclose(both["resid_pre"][1], 2 * (PLAIN["resid_pre"][1] + 1), rtol=1e-6)


def test_an_edit_is_built_inside_a_vmapped_function():
    """Layer, index and value may all be traced, so a sweep is one program."""

    def one(layer, head, value):
        return seen(patch("z", layer, {"head": head}, value))["z"]

    layers, heads = jnp.array([0, 1, 1]), jnp.array([3, 0, 2])
    values = jnp.array([1.0, 2.0, 3.0])
    found = jax.vmap(one)(layers, heads, values)
    for i, (layer, head, value) in enumerate(zip(layers, heads, values, strict=True)):
        assert (found[i, layer, :, head] == value).all()
        np.testing.assert_allclose(found[i, :layer], PLAIN["z"][:layer], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_derivatives_pass_through_an_edit():
    def logit(strength):
        edit = steer(0, jnp.ones(8), strength)
        return forward(PARAMS, MODERN, TOKENS, edit=edit).logits[-1, 0]

    step = 1e-2
    slope = (logit(step) - logit(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(logit)(0.0), slope, rtol=1e-2)


@pytest.mark.slow
def test_generation_takes_an_edit():
    silent = generate(PARAMS, MODERN, TOKENS, 3, jax.random.key(0), edit=ablate("z", 1))
    plain = generate(PARAMS, MODERN, TOKENS, 3, jax.random.key(0))
    assert not (silent.log_probs == plain.log_probs).all()


def test_generation_refuses_what_forward_refuses():
    for edit, named in ((ablate("z", 7), "layer=7"), (ablate("pos_embed"), "pos_embed")):
        with raises(ValueError, named):
            generate(PARAMS, MODERN, TOKENS, 3, jax.random.key(0), edit=edit, edit_from=1)
        with raises(ValueError, named):
            stream_tokens(PARAMS, MODERN, TOKENS, 3, jax.random.key(0), edit=edit)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: at("patern", 0, abs), ("patern", SITES[0])),
        (lambda: at("embed", 0, abs), ("embed", "layer=None", 0)),
        (lambda: at("z", 1.0, abs), ("layer=1.0",)),
        (lambda: ablate("z", True), ("layer=True",)),
        (lambda: ablate("z", 0, neuron=1), ("z", "neuron", "position", "head")),
        (lambda: patch("z", 0, {"hed": 1}, 0.0), ("z", "hed", "position", "head")),
        (lambda: ablate("z", 0, head=1.5), ("head=1.5",)),
        (lambda: ablate("z", 0, head=[0, 1]), ("head=[0, 1]",)),
        (lambda: ablate("z", jnp.array([0, 1])), ("layer", "[0, 1]")),
        (lambda: ablate("z", [0]), ("layer=[0]",)),
        (lambda: steer(0, jnp.ones(8), jnp.ones(5)), ("strength", "(5,)", "jax.vmap")),
        (lambda: steer(0, jnp.ones(8), 1j), ("strength", "complex64")),
        (lambda: inspect.unwrap(at)("z", 0, 3.0), ("fn=3.0", "patch")),
        (lambda: checked("z", 0), ("index=0",)),
        (lambda: knock_out("a", 0), ("'a'",)),
        (lambda: knock_out(2, 3), ("key=3", "query=2")),
        (lambda: knock_out(jnp.array([1, 2]), jnp.array([3, 4])), ("key=[3 4]", "query=[1 2]")),
        (lambda: patch_layers("embed", None, jnp.ones((5, 8))), ("embed", "patch")),
    ],
)
def test_a_wrong_edit_is_refused_when_it_is_built(build, named: tuple):
    with raises(ValueError, *named):
        build()


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (ablate("z", 2), ("layer=2", 0, 1)),
        (ablate("z", -1), ("layer=-1", 0, 1)),
        (freeze_pattern(jnp.ones((2, 4, 1, 1))), ("(4, 1, 1)", "pattern", "(4, 5, 5)")),
        (freeze_pattern(jnp.ones((2, 1, 5, 5))), ("(1, 5, 5)", "pattern", "(4, 5, 5)")),
        (freeze_pattern(jnp.ones((3, 4, 5, 5))), ("(3, 4, 5, 5)", 2)),
        (patch("z", 1, None, 1 + 2j), ("complex64", "z", "float32")),
        (at("z", 1, lambda value: value.astype(jnp.complex64)), ("complex64", "z", "float32")),
        (chain(ablate("z"), ablate("pos_embed")), ("pos_embed",)),
        (ablate("z", 0, head=4), ("head=4", "z", 4)),
        (ablate("z", 0, position=5), ("position=5", "z", 5)),
        (patch("z", 0, None, jnp.ones((3, 4, 4))), ("(3, 4, 4)", "z", "(5, 4, 4)")),
        (patch_layers("z", None, jnp.ones((2, 5, 4, 5))), ("(5, 4, 5)", "z", "(5, 4, 4)")),
        (at("z", 0, lambda value: value[0]), ("(4, 4)", "z", "(5, 4, 4)")),
    ],
)
def test_a_pass_without_the_layer_or_index_refuses_the_edit(edit, named: tuple):
    with raises(ValueError, *named):
        forward(PARAMS, MODERN, TOKENS, edit=edit)


@pytest.mark.parametrize(
    ("edit", "config", "compute", "named"),
    [
        (ablate("rot_q"), SEED, Compute(), ("rot_q",)),
        (ablate("z"), replace(MODERN, n_layers=0), Compute(), ("z", "n_layers=0")),
        (ablate("mlp_out", 0), ATTENTION_ONLY, Compute(), ("mlp_out",)),
        (knock_out(1, 0), MODERN, Compute(kernel="fused"), ("kernel='fused'", "scores")),
    ],
)
def test_a_model_or_kernel_without_the_site_refuses_the_edit(edit, config, compute, named: tuple):
    params, tokens = random_params(config), random_tokens(config, 5)
    with raises(ValueError, *named):
        forward(params, config, tokens, edit=edit, compute=compute)
