"""Gradients at every site, and attribution patching: laws, and what is refused."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxformer import Compute, Config, available_sites, forward, unstack
from jaxformer.interp.attribution import attribution_patch, check_pair, gradients, summed
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.models import (
    ATTENTION_ONLY,
    CLASSIC,
    MODERN,
    SEED,
    compiled_flops,
    configs,
    random_params,
    random_tokens,
)

LENGTH = 5
NODES = ("embed", "z", "mlp_out")


def metric(logits):
    return jnp.tanh(logits[-1, 2] - logits[-1, 1]) + logits[0, 3]


def linear(logits):
    return logits[-1, 2] - logits[-1, 1]


def pair(config: Config):
    return random_tokens(config, LENGTH), random_tokens(config, LENGTH, seed=1)


def effect(metric, params, config: Config, clean, corrupted):
    """Return the metric of the clean run minus that of the corrupted run."""
    clean, corrupted = (forward(params, config, text).logits for text in (clean, corrupted))
    return metric(clean) - metric(corrupted)


@pytest.mark.slow
@given(config=configs())
@examples(6)
def test_the_gradient_of_every_site_is_the_derivative_by_an_edit_that_adds_to_it(
    config: Config, x64
):
    """The edit indexes a stack by the traced layer, which is slower, but leaves the loop over layers to forward."""
    params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, LENGTH)
    sites = available_sites(config)
    plain = forward(params, config, tokens, capture=sites)

    def by_edit(changes):
        def add(site, layer, value):
            if layer is not None and not config.n_layers:
                return value  # traced, but this site has no layer
            own = changes[str(site)]
            return value + (own if layer is None else own[layer])

        return metric(forward(params, config, tokens, edit=add).logits)

    expected = jax.jit(jax.grad(by_edit))(jax.tree.map(jnp.zeros_like, plain.activations))
    run = jax.jit(lambda tokens: gradients(params, config, tokens, metric, sites))
    value, activations, slopes = run(tokens)
    np.testing.assert_allclose(value, metric(plain.logits), rtol=1e-12, atol=1e-12)
    assert set(slopes) == set(sites)
    for site in sites:
        np.testing.assert_allclose(activations[site], plain.activations[site], rtol=1e-10)
        np.testing.assert_allclose(slopes[site], expected[site], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_an_edit_logits_at_and_a_kernel_have_their_effect(x64):
    params, tokens = random_params(MODERN, dtype=jnp.float64), random_tokens(MODERN, LENGTH)

    def double(site, layer, value):
        return jnp.where(layer == 1, 2.0, 1.0) * value if site == "z" else value

    W_O = params.blocks.attn.W_O.at[1].multiply(2.0)
    doubled = params._replace(
        blocks=params.blocks._replace(attn=params.blocks.attn._replace(W_O=W_O))
    )
    sites, last = ("embed", "resid_pre", "final"), jnp.array([-1])
    how = Compute(kernel="blocked", remat="block", unroll=2)

    def run(params, **options):
        return jax.jit(lambda p: gradients(p, MODERN, tokens, linear, sites, **options))(params)

    edited, same = run(params, edit=double), run(doubled, logits_at=last, compute=how)
    assert same.gradients["final"].shape == (1, 8)
    for site in sites[:2]:
        np.testing.assert_allclose(same.gradients[site], edited.gradients[site], rtol=1e-10)
    narrow = jax.eval_shape(
        lambda: gradients(params, MODERN, tokens, linear, NODES, compute=Compute(dtype="bfloat16"))
    )
    assert narrow.gradients["z"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_all_nodes_cost_less_than_four_passes_and_a_layer_s_share_does_not_grow_with_depth():
    sizes = {"d_model": 32, "d_head": 8, "d_mlp": 128}

    def flops(function, depth):
        config = dataclasses.replace(SEED, n_layers=depth, **sizes)
        params, tokens = random_params(config), random_tokens(config, 7)
        return compiled_flops(lambda *args: function(args[0], config, args[1]), params, tokens)

    def every(params, config, tokens):
        return gradients(params, config, tokens, linear, NODES)

    def patch(params, config, tokens):
        both = tokens, tokens[::-1]
        return attribution_patch(params, config, *both, linear, NODES, by=("position",))

    # XLA counts the body of a loop once: only operations on stacks of all layers grow with depth.
    assert flops(every, 20) < 1.2 * flops(every, 2)
    one = flops(lambda *args: forward(*args).logits, 2)
    assert flops(every, 2) < 3 * one
    assert flops(patch, 2) < 4 * one


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_identical_inputs_give_exactly_zero(steps: int):
    params, tokens = random_params(CLASSIC), random_tokens(CLASSIC, LENGTH)
    sites = available_sites(CLASSIC)
    run = jax.jit(lambda a, b: attribution_patch(params, CLASSIC, a, b, metric, sites, steps=steps))
    for site, scores in run(tokens, tokens).items():
        assert (scores == 0).all(), site
    other = run(tokens, tokens.at[1].add(1) % CLASSIC.n_vocab)
    assert all(jnp.isfinite(scores).all() for scores in other.values())
    assert jnp.abs(other["scores"]).max() > 0


def test_on_a_linear_network_the_attributions_of_a_cut_sum_to_the_effect(x64):
    """Heads whose scores are all 0 average all tokens, so the network is linear in its embedding."""
    params, config = random_params(ATTENTION_ONLY, dtype=jnp.float64), ATTENTION_ONLY
    attn = params.blocks.attn._replace(W_Q=jnp.zeros_like(params.blocks.attn.W_Q))
    params = params._replace(blocks=params.blocks._replace(attn=attn))
    runs = params, config, *pair(config)
    sites = ("embed", "resid_pre", "resid_post", "final")
    scores = attribution_patch(*runs, linear, sites, logits_at=jnp.array([-1]))
    total = effect(linear, *runs)
    assert abs(total) > 0.1
    for values in scores.values():
        cuts = values.sum(axis=(-2, -1))
        np.testing.assert_allclose(cuts, jnp.full_like(cuts, total), rtol=1e-12)


def test_a_model_without_layers_has_only_the_embedding(x64):
    config = dataclasses.replace(SEED, n_layers=0)
    runs = random_params(config, dtype=jnp.float64), config, *pair(config)
    scores = attribution_patch(*runs, linear, NODES, by=("position",))
    np.testing.assert_allclose(scores["embed"][-1], effect(linear, *runs), rtol=1e-12)
    assert (scores["embed"][:-1] == 0).all()
    assert (scores["z"] == 0).all()


@pytest.mark.slow
def test_integrated_gradients_at_the_embedding_sum_to_the_effect(x64):
    """The error of the midpoint rule falls with the square of the number of steps."""
    params, both = random_params(MODERN, dtype=jnp.float64), pair(MODERN)
    total = effect(metric, params, MODERN, *both)

    @partial(jax.jit, static_argnums=0)
    def score(steps, clean, corrupted):
        runs = params, MODERN, clean, corrupted
        return attribution_patch(*runs, metric, ("embed",), steps=steps, by=())["embed"]

    def error(steps):
        return abs(float(score(steps, *both) - total))

    assert error(200) < 1e-3 * abs(float(total)) < error(1)
    assert error(400) == pytest.approx(error(200) / 4, rel=0.1)


@pytest.mark.slow
def test_many_narrow_steps_are_summed_wide():
    """In bfloat16 a running sum of 600 equal terms would stop growing at 256."""
    params, both = random_params(MODERN), pair(MODERN)

    @partial(jax.jit, static_argnums=0)
    def scores(compute, clean, corrupted):
        runs = params, MODERN, clean, corrupted
        return attribution_patch(*runs, linear, ("z",), steps=600, by=(), compute=compute)["z"]

    narrow, wide = scores(Compute(dtype="bfloat16"), *both), scores(Compute(), *both)
    np.testing.assert_allclose(narrow, wide, rtol=0.1)


@pytest.mark.slow
def test_for_a_small_difference_it_equals_patching(x64):
    """Two tokens with almost the same embedding: then the effect is of first order."""
    params = random_params(MODERN, dtype=jnp.float64)
    near = params.W_E[3] + 1e-5 * random_params(MODERN, 1, jnp.float64).W_E[0]
    params = params._replace(W_E=params.W_E.at[4].set(near))
    clean, corrupted = jnp.array([1, 3, 5, 3, 2]), jnp.array([1, 4, 5, 3, 2])
    scores = attribution_patch(
        params, MODERN, clean, corrupted, metric, ("z",), by=("layer", "head", "position")
    )["z"]
    clean_z = forward(params, MODERN, clean, capture=("z",)).activations["z"]
    base = metric(forward(params, MODERN, corrupted).logits)

    @jax.jit
    @jax.vmap
    def patched(layer, head, position):
        def patch(site, here, value):
            if site != "z":
                return value
            put = value.at[position, head].set(clean_z[here, position, head])
            return jnp.where(here == layer, put, value)

        return metric(forward(params, MODERN, corrupted, edit=patch).logits) - base

    places = jnp.indices(scores.shape, jnp.int32).reshape(3, -1)
    effects = patched(*places).reshape(scores.shape)
    assert jnp.abs(effects).max() > 1e-7
    np.testing.assert_allclose(scores, effects, rtol=1e-3, atol=1e-10)


def test_scores_of_z_equal_scores_of_head_out(x64):
    params, both = random_params(MODERN, dtype=jnp.float64), pair(MODERN)
    by = ("head", "position", "layer")
    scores = attribution_patch(params, MODERN, *both, metric, ("z", "head_out"), by=by)
    assert scores["z"].shape == (4, LENGTH, 2)
    np.testing.assert_allclose(scores["z"], scores["head_out"], rtol=1e-10, atol=1e-13)


@pytest.mark.slow
def test_vmap_gives_a_batch():
    params = random_params(MODERN)
    clean, corrupted = jnp.stack(pair(MODERN)), jnp.stack(pair(MODERN)[::-1])

    def one(clean, corrupted):
        runs = params, MODERN, clean, corrupted
        return attribution_patch(*runs, metric, NODES, steps=2, by=("position",))

    batch = jax.jit(jax.vmap(one))(clean, corrupted.at[1].set(clean[1]))
    single = jax.jit(one)(clean[0], corrupted[0])
    for site in NODES:
        np.testing.assert_allclose(batch[site][0], single[site], rtol=1e-3, atol=1e-5)
        assert (batch[site][1] == 0).all()


def test_scores_are_summed_to_the_named_axes():
    shapes = {"pattern": (2, 3, 4, 5), "k": (2, 4, 3, 2)}
    values = {site: jnp.arange(1.0 * np.prod(own)).reshape(own) for site, own in shapes.items()}
    out = summed(values, by=("head", "layer"))
    np.testing.assert_array_equal(out["pattern"], values["pattern"].sum((2, 3)).T)
    np.testing.assert_array_equal(out["k"], values["k"].sum((1, 3)).T)
    source = summed({"pattern": values["pattern"]}, by=("source", "position"))["pattern"]
    np.testing.assert_array_equal(source, values["pattern"].sum((0, 1)).T)
    neuron = summed({"post": jnp.ones((2, 4, 7))}, by=("neuron",))["post"]
    np.testing.assert_array_equal(neuron, jnp.full(7, 8.0))


tokens = random_tokens(SEED, LENGTH)
seed = random_params(SEED)
ONE = seed, SEED, tokens
BOTH = *ONE, tokens
Z, VALUES = ("z",), {"z": jnp.ones((1, 2, 3, 4))}
REFUSED = {
    "an unknown site": (lambda: gradients(*ONE, metric, ("zz",)), ("zz", "embed", "resid_pre")),
    "a string of sites": (lambda: gradients(*ONE, metric, "z"), ("sites='z'", "('z',)")),
    "a vector": (lambda: gradients(*ONE, lambda logits: logits[-1], Z), ("metric", "(11,)", "float32", "(5, 11)")),
    "an integer": (lambda: gradients(*ONE, lambda logits: logits[-1].argmax(), Z), ("metric", "()", "int32")),
    "a hidden site": (lambda: gradients(*ONE, metric, ("z", "scores"), compute=Compute(kernel="fused")),
                      ("kernel='fused'", "scores", "kernel='einsum'")),
    "a list of layers": (lambda: gradients(unstack(seed), SEED, tokens, metric, Z), ("init",)),
    "a token outside": (lambda: gradients(seed, SEED, tokens.at[1].set(11), metric, Z), (11, 1)),
    "other lengths": (lambda: attribution_patch(*ONE, tokens[1:], metric, Z),
                      ("clean", "(5,)", "corrupted", "(4,)")),
    "no steps": (lambda: attribution_patch(*BOTH, metric, Z, steps=0), ("steps=0", 1)),
    "half a step": (lambda: check_pair(tokens, tokens, 1.5), ("steps=1.5",)),
    "an unknown axis": (lambda: attribution_patch(*BOTH, metric, Z, by=("heads",)),
                        ("z", "heads", "layer", "position", "head")),
    "an axis that is not there": (lambda: attribution_patch(*BOTH, metric, ("z", "embed"), by=("layer",)),
                                  ("embed", "by=('layer',)")),
    "an axis twice": (lambda: summed(VALUES, by=("head", "head")), ("by", "head")),
    "one axis": (lambda: summed(VALUES, by="head"), ("by='head'", "('head',)")),
}  # fmt: skip


@pytest.mark.parametrize(("call", "named"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused(call, named: tuple):
    with raises(ValueError, *named):
        call()
