"""Capture and edit: what is shown, what it costs, and that nothing fails in silence."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxformer import SITES, Compute, Config, available_sites, forward
from jaxformer.config import Kernel
from jaxformer.sites import MODEL_SITES
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.models import NAMED, compiled_flops, configs, random_params, random_tokens

LENGTH = 5
SEED, MODERN = NAMED["seed"], NAMED["modern"]


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    size, t = config.sizes, LENGTH
    stream, heads, kv = (t, size["d"]), (t, size["n"], size["h"]), (t, size["k"], size["h"])
    scores, neurons = (size["n"], t, t), (t, size["f"])
    return {
        "embed": stream, "pos_embed": stream, "resid_pre": stream, "attn_scale": (t, 1),
        "q": heads, "k": kv, "v": kv, "rot_q": heads, "rot_k": kv, "scores": scores, "pattern": scores,
        "z": heads, "head_out": (t, size["n"], size["d"]), "attn_post_scale": (t, 1), "attn_out": stream,
        "resid_mid": stream, "mlp_scale": (t, 1), "pre": neurons, "pre_linear": neurons, "post": neurons,
        "mlp_post_scale": (t, 1), "mlp_out": stream,
        "resid_post": stream, "final_scale": (t, 1), "final": stream, "logits": (t, size["v"]),
    }  # fmt: skip


@given(config=configs())
@examples(6)
def test_every_site_is_captured_in_its_shape_and_shown_to_the_edit(config: Config):
    visited = []

    def spy(site, layer, value):
        assert (layer is None) == (site in MODEL_SITES)
        visited.append(site)
        return value + 0 if site == "logits" else value

    params, tokens = random_params(config), random_tokens(config, LENGTH)
    out = forward(params, config, tokens, capture=available_sites(config), edit=spy)
    assert set(out.activations) == set(available_sites(config))
    for site, shape in shapes(config).items():
        if site in available_sites(config):
            layered = () if site in MODEL_SITES else (config.n_layers,)
            assert out.activations[site].shape == layered + shape, site
    assert sorted(visited, key=SITES.index) == list(available_sites(config))


def test_capturing_changes_no_logit():
    params, tokens = random_params(MODERN), random_tokens(MODERN, LENGTH)
    plain = forward(params, MODERN, tokens)
    assert plain.activations == {}
    seen = forward(params, MODERN, tokens, capture=available_sites(MODERN))
    np.testing.assert_allclose(seen.logits, plain.logits, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(seen.activations["logits"], seen.logits)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("seed", "einsum"), ("modern", "einsum"), ("classic", "einsum"), ("gemma", "einsum"), ("seed", "fused")],
)  # fmt: skip
def test_an_edit_that_changes_nothing_compiles_to_the_identical_program(name: str, kernel: str):
    config = NAMED[name]
    params, tokens = random_params(config), random_tokens(config, LENGTH)

    def program(**options):
        def run(params, tokens):
            return forward(params, config, tokens, compute=Compute(kernel=kernel), **options).logits  # pyright: ignore[reportArgumentType]

        text = str(jax.jit(run).lower(params, tokens).compile().as_text())
        return [line.split(", metadata=")[0] for line in text.splitlines() if " = " in line]

    assert program(edit=lambda site, _, v: v * 1 if site == "logits" else v) == program()


def test_a_site_that_nobody_asks_for_costs_nothing():
    params, tokens = random_params(SEED), random_tokens(SEED, LENGTH)

    def flops(**options):
        return compiled_flops(lambda p, t: forward(p, SEED, t, **options).logits, params, tokens)

    def direct(params, tokens):
        """The seed written out by hand, with nothing in it that could be captured."""
        state = params.W_E[tokens]
        blocks = params.blocks

        def block(state, layer):
            attn, mlp = layer.attn, layer.mlp
            q, k, v = (jnp.einsum("td,dnh->tnh", state, W).transpose(1, 0, 2) for W in attn[:3])
            scores = jnp.einsum("kgth,ksh->kgts", q[:, None], k) * SEED.score_scale
            visible = jnp.arange(LENGTH) <= jnp.arange(LENGTH)[:, None]
            pattern = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf))
            z = jnp.einsum("kgts,ksh->kgth", pattern, v)[:, 0].transpose(1, 0, 2)
            state = state + jnp.einsum("tnh,nhd->td", z, attn.W_O)
            hidden = jax.nn.relu(jnp.einsum("td,df->tf", state, mlp.W_in))
            return state + jnp.einsum("tf,fd->td", hidden, mlp.W_out), None

        state, _ = jax.lax.scan(block, state, blocks)
        return state @ params.W_U

    by_hand = compiled_flops(direct, params, tokens)
    assert flops() == pytest.approx(by_hand, rel=0.01)
    each_head = lambda site, layer, value: value * 1.5 if site == "head_out" else value  # noqa: E731
    assert flops(edit=each_head) > flops()


def test_an_edit_at_any_site_reaches_the_logits():
    """Each site is scaled in turn, by one compiled program: the place to edit is itself traced."""
    params, tokens = random_params(MODERN), random_tokens(MODERN, LENGTH)
    sites = available_sites(MODERN)

    @jax.jit
    @partial(jax.vmap, in_axes=0)
    def edited(which):
        def scale(site, layer, value):
            return value * jnp.where(which == sites.index(str(site)), 1.5, 1.0)

        return forward(params, MODERN, tokens, edit=scale, capture=sites)

    plain = forward(params, MODERN, tokens, capture=sites)
    out = edited(jnp.arange(len(sites)))
    for i, site in enumerate(sites):
        assert np.abs(out.logits[i] - plain.logits).max() > 1e-4, site
        first = np.s_[...] if site in MODEL_SITES else np.s_[0]
        before = np.asarray(plain.activations[site])[first]
        after = np.asarray(out.activations[site])[i][first]
        seen = np.isfinite(before)
        np.testing.assert_allclose(after[seen], 1.5 * before[seen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_ablating_a_head_equals_a_model_without_it(layer: int, x64):
    params, tokens = random_params(SEED, dtype=jnp.float64), random_tokens(SEED, LENGTH)

    def ablate(site, here, value):
        if site == "z":
            return jnp.where(here == layer, value.at[:, 2].set(0.0), value)
        return value

    attn = params.blocks.attn
    attn = attn._replace(W_O=attn.W_O.at[layer, 2].set(0.0))
    without = params._replace(blocks=params.blocks._replace(attn=attn))
    found = forward(params, SEED, tokens, edit=ablate).logits
    np.testing.assert_allclose(found, forward(without, SEED, tokens).logits, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_gradient_goes_through_an_edit_under_jit_and_vmap(x64):
    params, tokens = random_params(MODERN, dtype=jnp.float64), random_tokens(MODERN, LENGTH)

    @jax.jit
    def steered(strength):
        def steer(site, layer, value):
            return value + jnp.where(layer == 1, strength, 0.0) if site == "resid_pre" else value

        return forward(params, MODERN, tokens, edit=steer).logits[-1, 0]

    step = 1e-6
    slope = (steered(0.3 + step) - steered(0.3 - step)) / (2 * step)
    assert float(jax.grad(steered)(0.3)) == pytest.approx(float(slope), rel=1e-6)
    strengths = jnp.array([0.0, 0.3])
    one_by_one = [steered(x) for x in strengths]
    np.testing.assert_allclose(jax.vmap(steered)(strengths), one_by_one, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "kernel", "capture", "named"),
    [
        ("seed", "einsum", ("patern",), ("'patern'", "embed", "resid_pre")),
        ("seed", "einsum", "pattern", ("capture='pattern'", "('pattern',)")),
        ("seed", "einsum", ("rot_q",), ("'rot_q'", "embed")),
        ("parallel", "einsum", ("resid_mid",), ("'resid_mid'", "embed")),
        ("attention_only", "einsum", ("mlp_out",), ("'mlp_out'", "embed")),
        ("classic", "einsum", ("pre_linear",), ("'pre_linear'", "embed")),
        ("seed", "fused", ("pattern",), ("kernel='fused'", "'pattern'", "kernel='einsum'")),
    ],
)
def test_a_site_that_cannot_be_shown_is_refused(name: str, kernel: Kernel, capture, named: tuple):
    params, config, tokens = random_params(NAMED[name]), NAMED[name], random_tokens(SEED, LENGTH)
    with raises(ValueError, *named):
        forward(params, config, tokens, capture=capture, compute=Compute(kernel=kernel))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda site, value: value[:1] if site == "z" else value, ("'z'", (1, 4, 4), (5, 4, 4))),
        (lambda site, value: 0.0 if site == "attn_out" else value, ("'attn_out'", (), (5, 8))),
        (lambda site, value: value.astype("complex64") if site == "z" else value, ("'z'", "complex64", "float32")),
        (lambda site, value: None if site == "z" else value, ("'z'", None)),
        (lambda site, value: value * 0 if site == "patern" else value, ("unchanged", "available_sites")),
        (lambda site, value: value, ("unchanged", "capture")),
    ],
    ids=["another shape", "a broadcast", "complex", "nothing", "a misspelt site", "no change"],
)  # fmt: skip
def test_an_edit_that_cannot_be_right_is_refused(wrong, named: tuple):
    params, tokens = random_params(SEED), random_tokens(SEED, LENGTH)
    with raises(ValueError, *named):
        forward(params, SEED, tokens, edit=lambda site, layer, value: wrong(site, value))


@pytest.mark.parametrize("kernel", ["blocked", "fused"])
@pytest.mark.parametrize("target", ["scores", "pattern"])
def test_an_edit_of_what_the_kernel_hides_is_refused(target: str, kernel: Kernel):
    params, tokens = random_params(SEED), random_tokens(SEED, LENGTH)
    run = partial(forward, params, SEED, tokens, compute=Compute(kernel=kernel))
    with raises(ValueError, f"'{target}'", f'kernel="{kernel}"'):
        run(edit=lambda site, layer, value: {target: value * 2}.get(site, value))
    run(edit=lambda site, layer, value: value * 2 if site == "z" else value)


def test_an_edit_in_another_dtype_is_brought_back_to_the_site_s():
    config = dataclasses.replace(SEED, n_layers=1)
    params, tokens = random_params(config), random_tokens(config, LENGTH)
    mean = jnp.ones((LENGTH, 8), jnp.float32)
    out = forward(
        params, config, tokens, compute=Compute(dtype="bfloat16"), capture=("attn_out",),
        edit=lambda site, layer, value: mean if site == "attn_out" else value,
    )  # fmt: skip
    assert out.activations["attn_out"].dtype == jnp.bfloat16
