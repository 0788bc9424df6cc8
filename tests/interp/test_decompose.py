"""Decompositions of the stream: components sum to the stream, in float64, with biases, for any Config."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given

from jaxformer import Compute, Config, forward, unstack
from jaxformer.interp.components import (
    accumulated_labels,
    component_labels,
    full_labels,
    head_labels,
    neuron_labels,
    stream_at,
)
from jaxformer.interp.decompose import (
    accumulated_resid,
    decompose_resid,
    full_decomposition,
    head_results,
    neuron_results,
)
from jaxformer.interp.lens import (
    apply_norm,
    direct_logit_attribution,
    final_bias,
    logit_directions,
    logit_lens,
)
from tests.helpers.errors import raises
from tests.helpers.exact import LENGTH, agree, captured, tame
from tests.helpers.examples import examples
from tests.helpers.models import (
    CLASSIC,
    MODERN,
    NAMED,
    PARALLEL,
    SEED,
    configs,
    random_params,
    random_tokens,
)

LAYERED_NORM = dataclasses.replace(CLASSIC, tied=False, unembed_bias=True, n_kv_heads=2)
BIGRAM = dataclasses.replace(CLASSIC, n_layers=0)
TOKENS = jnp.array([3, 1, 4])


@pytest.mark.slow
@example(config=NAMED["gemma"])
@example(config=dataclasses.replace(NAMED["olmo"], norm="layer", bias="all", norm_plus_one=True))
@example(config=BIGRAM)
@given(config=configs())
@examples(6)
def test_components_sum_to_the_stream_at_every_layer(config: Config, x64):
    params, out = captured(config)
    acts = out.activations
    places = [(layer, False) for layer in range(config.n_layers + 1)]
    places += [(layer, True) for layer in range(config.n_layers)] if config.d_mlp else []

    @jax.jit
    def parts(params, acts):
        return {
            (layer, before): (
                decompose_resid(params, config, acts, layer, mlp_input=before),
                full_decomposition(params, config, acts, layer, mlp_input=before),
                full_decomposition(params, config, acts, layer, mlp_input=before, neurons=True),
            )
            for layer, before in places
        }

    for (layer, mlp_input), (by_layer, by_head, by_neuron) in parts(params, acts).items():
        where = {"layer": layer, "mlp_input": mlp_input}
        stream = stream_at(config, acts, **where)
        for found, labels in (
            (by_layer, component_labels(config, **where)),
            (by_head, full_labels(config, **where)),
            (by_neuron, full_labels(config, **where, neurons=True)),
        ):
            assert len(found) == len(labels) == len(set(labels))
            agree(found.sum(0), stream, where)


@pytest.mark.slow
def test_every_row_has_the_value_of_its_label(x64):
    params, out = captured(CLASSIC)
    acts = out.activations
    rows = dict(zip(component_labels(CLASSIC), decompose_resid(params, CLASSIC, acts), strict=True))
    np.testing.assert_array_equal(rows["embed"], acts["embed"])
    np.testing.assert_array_equal(rows["pos_embed"], acts["pos_embed"])
    np.testing.assert_array_equal(rows["0_mlp_out"], acts["mlp_out"][0])
    np.testing.assert_array_equal(rows["1_attn_out"], acts["attn_out"][1])
    full = full_decomposition(params, CLASSIC, acts, neurons=True)
    rows = dict(zip(full_labels(CLASSIC, neurons=True), full, strict=True))
    agree(rows["L1H2"], acts["head_out"][1, :, 2])
    mlp = params.blocks.mlp
    agree(rows["L1N3"], acts["post"][1][:, 3:4] * mlp.W_out[1, 3])
    np.testing.assert_array_equal(rows["embed"], acts["embed"])
    biases = params.blocks.attn.b_O.sum(0) + mlp.b_out.sum(0)
    agree(rows["bias"], np.broadcast_to(biases, (LENGTH, 8)))


def test_a_parallel_mlp_reads_what_its_attention_reads(x64):
    params, out = captured(PARALLEL)
    assert component_labels(PARALLEL, 1, mlp_input=True) == ["embed", "0_attn_out", "0_mlp_out"]
    parts = decompose_resid(params, PARALLEL, out.activations, 1, mlp_input=True)
    agree(parts.sum(0), out.activations["resid_pre"][1])
    normed = apply_norm(params, PARALLEL, out.activations, parts, 1, mlp_input=True).sum(0)
    read = (normed + params.blocks.mlp_norm.b[1]) @ params.blocks.mlp.W_in[1]
    agree(read + params.blocks.mlp.b_in[1], out.activations["pre"][1])


@pytest.mark.slow
@example(config=NAMED["gemma"])
@example(config=BIGRAM)
@given(config=configs())
@examples(6)
def test_attributions_sum_to_the_logit_and_to_a_difference_of_logits(config: Config, x64):
    params, out = captured(config)
    acts, places, cap = out.activations, jnp.arange(LENGTH), config.logit_soft_cap
    each, one, other = jnp.array([3, 0, 6, 2, 2]) % config.n_vocab, jnp.array(4), jnp.array(1)
    pairs = ((each, None), (one, None), (one, other), (each, each[::-1]))

    @jax.jit
    def attribute(params, acts):
        parts = full_decomposition(params, config, acts)
        found = []
        for tokens, minus in pairs:
            by_part = direct_logit_attribution(params, config, acts, parts, tokens, minus)
            found.append(by_part.sum(0) + final_bias(params, config, tokens, minus))
        return found, apply_norm(params, config, acts, parts).sum(0)

    found, normed = attribute(params, acts)
    logits = out.logits if cap is None else cap * jnp.arctanh(out.logits / cap)
    for attributed, (tokens, minus) in zip(found, pairs, strict=True):
        expected = logits[places, tokens]
        agree(attributed, expected if minus is None else expected - logits[places, minus])
    bias = 0.0 if params.final_norm is None or params.final_norm.b is None else params.final_norm.b
    agree(normed + bias, acts["final"])


@pytest.mark.slow
@example(config=BIGRAM)
@given(config=configs())
@examples(6)
def test_the_last_row_of_the_lens_is_the_model_and_each_row_has_its_own_scale(config: Config, x64):
    params, out = captured(config)

    @jax.jit
    def lens(params, acts):
        streams = accumulated_resid(params, config, acts)
        return logit_lens(params, config, streams), logit_lens(params, config, 7.0 * streams)

    read, larger = lens(params, out.activations)
    labels = accumulated_labels(config)
    assert len(read) == len(labels) == config.n_layers + 1
    assert labels[-1] == "final_post"
    agree(read[-1], out.logits)
    if config.norm != "none" and config.norm_epsilon < 1e-4:
        # With one scale for all rows, a stream seven times as large would have other logits.
        spread = np.abs(np.asarray(larger) - np.asarray(read)).max()
        assert spread < 1e-2 * np.abs(np.asarray(read)).max()


@pytest.mark.slow
def test_the_lens_is_the_model_s_logits_in_each_dtype():
    """The lens casts nothing that the model does not: a rounding to bfloat16 would change the third digit."""
    params, tokens = random_params(LAYERED_NORM), random_tokens(LAYERED_NORM, LENGTH)
    sites = ("resid_pre", "resid_post")
    for dtype in ("float32", "bfloat16"):
        compute = Compute(dtype=dtype)
        out = forward(params, LAYERED_NORM, tokens, capture=sites, compute=compute)
        streams = accumulated_resid(params, LAYERED_NORM, out.activations)
        assert streams.dtype == dtype
        found = logit_lens(params, LAYERED_NORM, streams)[-1]
        np.testing.assert_allclose(found, out.logits, rtol=1e-5, atol=1e-6)


def test_streams_are_named_and_in_order(x64):
    params, out = captured(CLASSIC)
    acts = out.activations
    streams = accumulated_resid(params, CLASSIC, acts, incl_mid=True)
    names = accumulated_labels(CLASSIC, incl_mid=True)
    assert names == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    for name, stream in zip(names, streams, strict=True):
        layer, place = name.split("_")
        site = acts[f"resid_{place}"]
        np.testing.assert_array_equal(stream, site[-1 if layer == "final" else int(layer)])
    streams = accumulated_resid(params, CLASSIC, acts, 1, mlp_input=True)
    assert accumulated_labels(CLASSIC, 1, mlp_input=True) == ["0_pre", "1_pre", "1_mid"]
    np.testing.assert_array_equal(streams[-1], acts["resid_mid"][1])
    params, out = captured(PARALLEL)
    assert len(accumulated_resid(params, PARALLEL, out.activations, 1, mlp_input=True)) == 2


def test_heads_come_from_what_was_captured_and_the_remainder_is_the_rest(x64):
    params, out = captured(MODERN)
    acts = out.activations
    from_z = {site: value for site, value in acts.items() if site != "head_out"}
    written = np.asarray(acts["head_out"]).swapaxes(1, 2).reshape(8, LENGTH, 8)
    agree(head_results(params, MODERN, from_z), written)
    rows = head_results(params, MODERN, acts, 1, remainder=True)
    labels = head_labels(MODERN, 1, remainder=True)
    assert labels == ["L0H0", "L0H1", "L0H2", "L0H3", "remainder"]
    agree(rows.sum(0), acts["resid_pre"][1])
    agree(rows[-1], acts["embed"] + acts["mlp_out"][0])
    # A head that an edit set to zero wrote nothing, whatever its z: head_out is used if present.
    silent = acts | {"head_out": jnp.zeros_like(acts["head_out"])}
    assert not np.any(head_results(params, MODERN, silent))


@pytest.mark.slow
def test_neurons_sum_to_their_layer_and_are_projected_without_being_formed(x64):
    params, out = captured(LAYERED_NORM)
    acts = out.activations
    neurons = neuron_results(params, LAYERED_NORM, acts, 1)
    assert len(neuron_labels(LAYERED_NORM, 1)) == len(neurons)
    agree(neurons.sum(0) + params.blocks.mlp.b_out[1], acts["mlp_out"][1])
    one = jnp.arange(8.0)
    agree(neuron_results(params, LAYERED_NORM, acts, 1, onto=one), neurons @ one)
    towards = logit_directions(params, LAYERED_NORM, acts, 3, 5)
    written = direct_logit_attribution(params, LAYERED_NORM, acts, neurons, 3, 5)
    agree(neuron_results(params, LAYERED_NORM, acts, 1, onto=towards), written)
    every = jax.vmap(lambda layer: neuron_results(params, LAYERED_NORM, acts, layer, onto=one))
    agree(every(jnp.arange(2))[1], neurons @ one)
    program = jax.jit(partial(neuron_results, params, LAYERED_NORM, layer=1, onto=towards))
    shapes = program.lower({"post": acts["post"]}).as_text()
    assert "12x5xf64" in shapes
    assert not any(formed in shapes for formed in ("12x5x8xf64", "12x8x5xf64"))


def test_neurons_of_a_traced_layer_out_of_range_are_nan():
    params, out = random_params(SEED), forward(random_params(SEED), SEED, TOKENS, capture=("post",))
    found = jax.jit(lambda layer: neuron_results(params, SEED, out.activations, layer))
    for layer in (-1, 2):
        assert np.isnan(found(layer)).all()


def test_narrow_neurons_are_projected_in_float32():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(SEED))
    out = forward(params, SEED, TOKENS, capture=("post",))
    towards = logit_directions(params, SEED, out.activations, 2)
    found = neuron_results(params, SEED, out.activations, 0, onto=towards)
    expected = out.activations["post"][0].astype(jnp.float32) * (
        params.blocks.mlp.W_out[0].astype(jnp.float32) @ towards
    )
    np.testing.assert_allclose(found, expected.T, rtol=1e-6)


def test_an_edited_scale_and_logits_at_are_used(x64):
    params, tokens = tame(LAYERED_NORM), random_tokens(LAYERED_NORM, LENGTH)
    edit = lambda site, layer, value: value * 3.0 if site == "final_scale" else value  # noqa: E731
    sites, read = ("embed", "pos_embed", "attn_out", "mlp_out", "final_scale"), jnp.array([-1, 2])
    out = forward(params, LAYERED_NORM, tokens, capture=sites, edit=edit, logits_at=read)
    parts = decompose_resid(params, LAYERED_NORM, out.activations)
    wrote = direct_logit_attribution(params, LAYERED_NORM, out.activations, parts[:, read], 2)
    agree(wrote.sum(0) + final_bias(params, LAYERED_NORM, 2), out.logits[:, 2])
    with raises(ValueError, 5, 2, "logits_at"):
        direct_logit_attribution(params, LAYERED_NORM, out.activations, parts, 2)


def test_a_batch_by_vmap_and_a_derivative(x64):
    params = tame(LAYERED_NORM)
    batch = jnp.stack([random_tokens(LAYERED_NORM, LENGTH, seed) for seed in range(2)])

    @jax.jit
    @jax.vmap
    def attributed(tokens):
        sites = ("embed", "pos_embed", "attn_out", "mlp_out", "resid_post")
        out = forward(params, LAYERED_NORM, tokens, capture=sites)
        parts = decompose_resid(params, LAYERED_NORM, out.activations)
        bias = final_bias(params, LAYERED_NORM, tokens)
        wrote = direct_logit_attribution(params, LAYERED_NORM, out.activations, parts, tokens)
        return wrote.sum(0) + bias, out.logits[jnp.arange(LENGTH), tokens]

    agree(*attributed(batch))
    _, out = captured(LAYERED_NORM)
    parts = decompose_resid(params, LAYERED_NORM, out.activations)
    attribute = partial(direct_logit_attribution, params, LAYERED_NORM, out.activations)
    slope = jax.grad(lambda parts: attribute(parts, 1)[0, 2])(parts)
    agree(slope[0, 2], logit_directions(params, LAYERED_NORM, out.activations, 1)[2])


def test_a_token_outside_the_vocabulary_is_refused_or_nan(x64):
    params, out = captured(LAYERED_NORM)
    parts = decompose_resid(params, LAYERED_NORM, out.activations)
    attribute = partial(direct_logit_attribution, params, LAYERED_NORM, out.activations, parts)
    with raises(ValueError, 11, 0):
        attribute(11)
    assert np.isnan(jax.jit(attribute)(jnp.array(-1))).all()
    assert np.isnan(jax.jit(partial(final_bias, params, LAYERED_NORM))(jnp.array(11)))


def test_wrong_arguments_are_refused(x64):
    params, out = captured(CLASSIC)
    acts = out.activations
    without = {site: value for site, value in acts.items() if site not in ("attn_out", "embed")}
    bare = {"resid_pre": acts["resid_pre"]}
    many = jax.tree.map(lambda value: jnp.stack([value, value]), acts)
    none = dataclasses.replace(SEED, d_mlp=0)
    parts = jnp.ones((2, LENGTH, 8))
    cases = [
        (lambda: decompose_resid(params, CLASSIC, without), ("embed", "attn_out", "capture")),
        (lambda: decompose_resid(params, CLASSIC, many), ("embed", "(2, 5, 8)", "[t d]", "jax.vmap")),
        (lambda: decompose_resid(params, CLASSIC, acts, 3), ("layer=3", 0, 2)),
        (lambda: decompose_resid(params, CLASSIC, acts, -1), ("layer=-1",)),
        (lambda: decompose_resid(params, CLASSIC, acts, 2, mlp_input=True), ("layer=2", "n_layers=2")),
        (lambda: component_labels(none, 1, mlp_input=True), ("layer=1", "d_mlp=0")),
        (lambda: accumulated_resid(tame(PARALLEL), PARALLEL, acts, incl_mid=True), ("parallel=True", "incl_mid=False")),
        (lambda: accumulated_labels(none, incl_mid=True), ("d_mlp=0", "incl_mid=False")),
        (lambda: accumulated_resid(params, CLASSIC, bare), ("resid_post", "capture")),
        (lambda: head_results(params, CLASSIC, bare), ("z", "capture")),
        (lambda: head_results(params, CLASSIC, {"z": acts["z"]}, remainder=True), ("resid_post", "capture")),
        (lambda: head_results(unstack(params), CLASSIC, acts), ("init",)),
        (lambda: neuron_results(params, CLASSIC, acts, 2), ("layer=2", 0, 1)),
        (lambda: neuron_results(params, CLASSIC, acts, jnp.int32(2)), ("layer=2",)),
        (lambda: neuron_results(params, CLASSIC, acts, jnp.int32(-1)), ("layer=-1",)),
        (lambda: neuron_results(tame(none), none, acts, 0), ("d_mlp=0",)),
        (lambda: neuron_labels(none, 0), ("d_mlp=0",)),
        (lambda: logit_directions(params, CLASSIC, bare, 1), ("resid_post", "capture")),
        (lambda: logit_directions(params, CLASSIC, acts, jnp.array([1, 2, 3])), (3, 5)),
        (lambda: direct_logit_attribution(params, CLASSIC, acts, parts, jnp.ones((2, 5), jnp.int32)),
         ("tokens", "(2, 5)")),
        (lambda: logit_directions(params, CLASSIC, acts, jnp.ones(5, int), jnp.ones(3, int)),
         ("tokens", "(5,)", "minus", "(3,)")),
        (lambda: final_bias(params, CLASSIC, jnp.ones(5, int), jnp.ones(3, int)), ("tokens", "(5,)", "minus", "(3,)")),
        (lambda: apply_norm(params, CLASSIC, acts, parts[:, -1:]), (1, 5, "logits_at")),
        (lambda: apply_norm(unstack(params), CLASSIC, acts, parts, 0), ("init",)),
    ]  # fmt: skip
    for call, named in cases:
        with raises(ValueError, *named):
            call()
