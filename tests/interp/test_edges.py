"""Edge attribution patching equals derivatives of passes in which each receiver has its own copy of the stream."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given

from jaxformer import Config, forward, unstack
from jaxformer.interp.edges import edge_attribution, edge_mask, receivers, senders
from jaxformer.interp.jacobians import jvp_between
from jaxformer.model.norm import normalize
from jaxformer.model.stream import query
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.models import (
    ATTENTION_ONLY,
    CLASSIC,
    MODERN,
    NAMED,
    PARALLEL,
    SEED,
    configs,
    random_params,
    random_tokens,
)

LENGTH = 4


def metric(logits):
    return jnp.tanh(logits[-1, 2] - logits[-1, 1]) + logits[1, 3]


def linear(logits):
    return logits[-1, 2] - logits[-1, 1]


def pair(config: Config):
    return random_tokens(config, LENGTH), random_tokens(config, LENGTH, seed=1)


def sent(params: Any, config: Config, clean: jax.Array, corrupted: jax.Array, start=None):
    """Return the clean minus the corrupted output of each sender, in the order of `senders`.

    A norm after attention is linearised, in the run that starts with these embeddings.
    """

    def begun(site, layer, value):
        return (
            value + 0 if site == "embed" and start is None else start if site == "embed" else value
        )

    sites = ("embed", "head_out", *(("mlp_out",) if config.d_mlp else ()))
    target, base = (
        forward(params, config, tokens, capture=sites).activations for tokens in (clean, corrupted)
    )
    rows = []
    for node in senders(config):
        where = () if node.layer is None else (node.layer,)
        where += () if node.head is None else (slice(None), node.head)
        change = target[node.site][where] - base[node.site][where]
        if node.site == "head_out" and config.has_norm("after"):
            place, written = ("head_out", node.layer), ("attn_out", node.layer)
            own = jnp.zeros((LENGTH, config.n_heads, config.d_model)).at[:, node.head].set(change)
            change = jvp_between(params, config, corrupted, place, written, own, edit=begun)
        rows.append(change)
    return jnp.stack(rows)


def split_streams(params: Any, config: Config, deltas: jax.Array, factors: dict, start=None):
    """Return an edit that adds factors · deltas to each receiver's own copy of the stream.

    It stores the stream of a layer and recomputes q, k, v and pre of each head from the stream plus the deltas of that
    head. There is no rule for heads or norms here.
    """
    kept: dict[str, Any] = {}

    def edit(site, layer, value):
        if site == "embed":
            return value + 0 if start is None else start  # without layers, no other site changes
        if site in ("resid_pre", "resid_mid"):
            kept[str(site)] = value
        if site in ("q", "k", "v"):
            block = jax.tree.map(lambda stack: stack[layer], params.blocks)
            W = getattr(block.attn, f"W_{site}".upper())
            stream = kept["resid_pre"]
            moved = stream + jnp.tensordot(factors[str(site)][layer], deltas, 1)

            def read(stream):
                normed = normalize(block.attn_norm, config, stream)
                return query(normed, W)

            own = jnp.diagonal(jax.vmap(read)(moved), axis1=0, axis2=2)  # one stream for each head
            return value + own.transpose(0, 2, 1) - read(stream)
        if site in ("pre", "pre_linear"):
            block = jax.tree.map(lambda stack: stack[layer], params.blocks)
            stream = kept["resid_pre" if config.parallel else "resid_mid"]
            W = block.mlp.W_gate if config.gated and site == "pre" else block.mlp.W_in
            moved = stream + jnp.tensordot(factors["pre"][layer], deltas, 1)
            new, old = (query(normalize(block.mlp_norm, config, x), W) for x in (moved, stream))
            return value + new - old
        if site == "resid_post":
            last = jnp.asarray(layer == config.n_layers - 1, value.dtype)
            return value + last * jnp.tensordot(factors["final"], deltas, 1)
        return value

    return edit


def by_split_streams(
    params: Any, config: Config, corrupted: jax.Array, deltas: jax.Array, start=None
):
    """Return the derivative of the metric by a factor on each delta in each receiver's own copy of the stream."""
    shape = {site: (config.sizes[axis],) for site, axis in (("q", "n"), ("k", "k"), ("v", "k"))}
    shape = shape | ({"pre": ()} if config.d_mlp else {})
    factors = {site: jnp.zeros((config.n_layers, *own, len(deltas))) for site, own in shape.items()}
    factors["final"] = jnp.zeros(len(deltas))

    def value(factors):
        edit = split_streams(params, config, deltas, factors, start)
        return metric(forward(params, config, corrupted, edit=edit).logits)

    grads = jax.jit(jax.grad(value))(factors)
    columns = []
    for node in receivers(config):
        where = () if node.layer is None else (node.layer,)
        columns.append(grads[node.site][where if node.head is None else (*where, node.head)])
    return jnp.stack(columns, axis=1)


@pytest.mark.slow
@example(config=CLASSIC)
@given(config=configs())
@examples(5)
def test_every_edge_is_the_derivative_by_one_sender_s_change_of_one_receiver(config: Config, x64):
    assume(config.n_layers)
    params, (clean, corrupted) = random_params(config, dtype=jnp.float64), pair(config)
    scores = jax.jit(lambda a, b: edge_attribution(params, config, a, b, metric))(clean, corrupted)
    mask = edge_mask(config)
    assert scores.shape == mask.shape == (len(senders(config)), len(receivers(config)))
    # After the rows of the senders, add the full change of each receiver's input, as if one sender had written it.
    deltas = sent(params, config, clean, corrupted)
    read = {"final": "resid_post", "pre": "resid_pre" if config.parallel else "resid_mid"}
    places = [
        (read.get(node.site, "resid_pre"), -1 if node.layer is None else node.layer)
        for node in receivers(config)
    ]
    target, base = (
        forward(params, config, text, capture=tuple({site for site, _ in places})).activations
        for text in (clean, corrupted)
    )
    inputs = [target[site][layer] - base[site][layer] for site, layer in places]
    rows = jnp.concatenate([deltas, jnp.stack(inputs)])
    expected = by_split_streams(params, config, corrupted, rows)
    each, full = expected[: len(deltas)], expected[len(deltas) :]
    np.testing.assert_allclose(scores, jnp.where(mask, each, 0.0), rtol=1e-9, atol=1e-11)
    if not config.has_norm(
        "after"
    ):  # with a norm after attention, heads add up to first order only
        np.testing.assert_allclose(scores.sum(0), jnp.diag(full), rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("config", [dataclasses.replace(PARALLEL, gated=True), NAMED["gemma"]])
def test_integrated_edges_are_the_mean_over_the_midpoints_of_the_steps(config: Config, x64):
    params, (clean, corrupted) = random_params(config, dtype=jnp.float64), pair(config)
    scores = edge_attribution(params, config, clean, corrupted, metric, steps=2)
    start, end = (config.embedding_scale * params.W_E[some] for some in (corrupted, clean))
    each = []
    for part in (0.25, 0.75):
        between = start + part * (end - start)
        deltas = sent(params, config, clean, corrupted, between)
        each.append(by_split_streams(params, config, corrupted, deltas, between))
    expected = jnp.where(edge_mask(config), sum(each) / 2, 0.0)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SEED, ATTENTION_ONLY, dataclasses.replace(SEED, n_layers=0)])
def test_without_norms_the_edges_into_the_unembedding_sum_to_the_effect(config: Config, x64):
    params, (clean, corrupted) = random_params(config, dtype=jnp.float64), pair(config)
    scores = edge_attribution(params, config, clean, corrupted, linear, logits_at=jnp.array([-1]))
    effect = linear(forward(params, config, clean).logits)
    effect -= linear(forward(params, config, corrupted).logits)
    assert abs(effect) > 0.1
    np.testing.assert_allclose(scores[:, -1].sum(), effect, rtol=1e-12)


@pytest.mark.slow(unless=("1",))
@pytest.mark.parametrize("steps", [1, 2])
def test_vmap_gives_a_batch_and_identical_inputs_give_exactly_zero(steps: int):
    params = random_params(MODERN)
    clean, corrupted = (jnp.stack([tokens] * 2) for tokens in pair(MODERN))

    def one(clean, corrupted):
        return edge_attribution(params, MODERN, clean, corrupted, metric, steps=steps)

    batch = jax.jit(jax.vmap(one))(clean, corrupted.at[1].set(clean[1]))
    single = jax.jit(one)(clean[0], corrupted[0])
    np.testing.assert_allclose(batch[0], single, rtol=1e-3, atol=1e-5)
    assert jnp.abs(single).max() > 0.01
    assert (batch[1] == 0).all()


def test_an_edge_leads_only_to_later_receivers():
    two = dataclasses.replace(SEED, n_heads=1)
    rows = [str(node) for node in senders(two)]
    columns = np.array([str(node) for node in receivers(two)])

    def read_by(name, config):
        return columns[np.asarray(edge_mask(config)[rows.index(name)])].tolist()

    assert read_by("embed", two) == columns.tolist()
    later = ["L1H0.q", "L1H0.k", "L1H0.v", "L1.pre", "final"]
    assert read_by("L0H0.head_out", two) == ["L0.pre", *later]
    assert read_by("L0H0.head_out", dataclasses.replace(two, parallel=True)) == later
    assert read_by("L0.mlp_out", two) == later
    assert read_by("L1H0.head_out", two) == ["L1.pre", "final"]
    assert read_by("L1.mlp_out", two) == ["final"]


def test_wrong_arguments_are_refused():
    params, (clean, corrupted) = random_params(SEED), pair(SEED)
    with raises(ValueError, "clean", "(4,)", "corrupted", "(3,)"):
        edge_attribution(params, SEED, clean, corrupted[1:], linear)
    with raises(ValueError, "steps=0", 1):
        edge_attribution(params, SEED, clean, corrupted, linear, steps=0)
    with raises(ValueError, "init"):
        edge_attribution(unstack(params), SEED, clean, corrupted, linear, steps=2)
    with raises(ValueError, "metric", "(4, 11)", "float32"):
        edge_attribution(params, SEED, clean, corrupted, lambda logits: logits)
