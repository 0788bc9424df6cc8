"""Folds: each keeps the logits, or the log-probabilities, of any model, and does what it promises."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given

from jaxformer import Config, Params, forward, unstack
from jaxformer.interp.fold import (
    center_unembed,
    center_writing,
    fold_norm,
    fold_value_bias,
    foldable,
    refactor_ov,
    refactor_qk,
    refactor_qk_ov,
)
from jaxformer.interp.refactor import svd_of_product
from jaxformer.model.checks import check_params
from tests.helpers.errors import raises
from tests.helpers.exact import agree, tame
from tests.helpers.examples import examples
from tests.helpers.models import (
    ATTENTION_ONLY,
    CLASSIC,
    MODERN,
    NAMED,
    SEED,
    WINDOWED,
    configs,
    random_params,
    random_tokens,
    same,
)

LENGTH = 5
LAYER_NORM = dataclasses.replace(
    CLASSIC, tied=False, unembed_bias=True, n_kv_heads=2, position="sinusoidal", n_context=None
)
WIDE = dataclasses.replace(LAYER_NORM, d_model=4, d_head=8, d_mlp=0, window=2)
BIGRAM = dataclasses.replace(LAYER_NORM, n_layers=0)


def folds(config: Config) -> dict[str, Any]:
    """Return the folds that a foldable Config takes, and all of them in sequence."""
    can_act = {
        center_writing: config.norm == "layer" and config.norm_place == "before",
        fold_norm: config.norm != "none",
        refactor_qk: config.position != "rotary" and config.qk_norm == "none",
        refactor_ov: True,
        fold_value_bias: True,
        center_unembed: config.logit_soft_cap is None,
    }
    chosen: dict[str, Any] = {fold.__name__: fold for fold, can in can_act.items() if can}

    def every(params: Params, config: Config) -> Params:
        for fold in chosen.values():
            params = fold(params, config)
        return params

    return chosen | {"every": every}


@pytest.mark.slow
@example(config=NAMED["gemma"])
@example(config=dataclasses.replace(NAMED["olmo"], norm="layer", norm_plus_one=True))
@example(config=BIGRAM)
@given(config=configs())
@examples(3)
def test_every_fold_keeps_the_logits_or_log_probabilities(config: Config, x64):
    params, tokens = tame(config), random_tokens(config, LENGTH)

    @jax.jit
    def run(params):
        first, ready = foldable(params, config)
        folded = {name: fold(first, ready) for name, fold in folds(ready).items()}
        for after in folded.values():
            check_params(after, ready)
        # Compile the forward pass once for all folds.
        stack = jax.tree.map(lambda *arrays: jnp.stack(arrays), first, *folded.values())
        logits = jax.vmap(lambda params: forward(params, ready, tokens).logits)(stack)
        return forward(params, config, tokens).logits, logits

    expected, logits = run(params)
    named = dict(zip(["foldable", *folds(config)], logits, strict=True))
    for name, found in named.items():
        shifted = name in ("center_unembed", "every") and config.logit_soft_cap is None
        said = jax.nn.log_softmax if shifted else jnp.asarray
        agree(said(found), said(expected), name)


def test_foldable_adds_only_zeros(x64):
    params: Any
    params, ready = foldable(before := tame(MODERN), MODERN)
    assert ready == dataclasses.replace(MODERN, bias="all", unembed_bias=True)
    assert not np.any(params.b_U)
    assert not np.any(params.blocks.attn.b_O)
    assert params.final_norm.b is None  # an RMSNorm has no bias
    np.testing.assert_array_equal(params.blocks.attn.b_Q, before.blocks.attn.b_Q)
    twice, again = foldable(params, ready)
    assert again == ready
    same(twice, params)
    tied: Any = foldable(tame(CLASSIC), CLASSIC)[0]
    np.testing.assert_array_equal(tied.W_U, tied.W_E.T)


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_folded_norm_only_divides(norm: Any, plus_one: bool, x64):
    config = dataclasses.replace(
        LAYER_NORM, norm=norm, gated=True, norm_place="both", norm_plus_one=plus_one
    )
    params: Any = fold_norm(before := tame(config), config)
    attn, mlp, unfolded = params.blocks.attn, params.blocks.mlp, before.blocks
    for each in (params.blocks.attn_norm, params.blocks.mlp_norm, params.final_norm):
        np.testing.assert_array_equal(each.w, np.full_like(each.w, 1.0 - plus_one))
        assert each.b is None or not np.any(each.b)
    if norm == "layer":
        for W in (*attn[:3], mlp.W_in, mlp.W_gate, params.W_U[None]):
            agree(W.mean(axis=1), np.zeros_like(W[:, 0]))
    else:
        w = unfolded.attn_norm.w[1, :, None, None] + float(plus_one)
        agree(attn.W_Q[1], w * unfolded.attn.W_Q[1])
    after = params.blocks.attn_post_norm, params.blocks.mlp_post_norm
    same((attn.W_O, mlp.W_out, params.W_E), (unfolded.attn.W_O, unfolded.mlp.W_out, before.W_E))
    same(after, (unfolded.attn_post_norm, unfolded.mlp_post_norm))


@pytest.mark.slow
def test_centred_weights_have_mean_zero(x64):
    learned = dataclasses.replace(LAYER_NORM, position="learned", n_context=9)
    params: Any = center_writing(tame(learned), learned)
    attn, mlp = params.blocks.attn, params.blocks.mlp
    for writer in (params.W_E, params.W_pos, attn.W_O, attn.b_O, mlp.W_out, mlp.b_out):
        agree(writer.mean(axis=-1), np.zeros(writer.shape[:-1]))
    tokens = random_tokens(learned, LENGTH)
    stream = forward(params, learned, tokens, capture=("resid_post",)).activations["resid_post"]
    agree(stream.mean(axis=-1), np.zeros(stream.shape[:-1]))
    params = center_unembed(tame(learned), learned)
    agree(params.W_U.mean(axis=1), np.zeros(8))
    agree(params.b_U.mean(), 0.0)


@pytest.mark.parametrize("config", [LAYER_NORM, WIDE], ids=["grouped", "wide"])
def test_a_value_bias_becomes_an_output_bias(config: Config, x64):
    params: Any = fold_value_bias(before := tame(config), config)
    assert not np.any(params.blocks.attn.b_V)
    attn = before.blocks.attn
    expected = np.array(attn.b_O)
    for head in range(config.n_heads):
        key = head // (config.n_heads // 2)
        expected += np.einsum("lh,lhd->ld", attn.b_V[:, key], attn.W_O[:, head])
    agree(params.blocks.attn.b_O, expected)


@pytest.mark.slow(unless=("plain",))
@pytest.mark.parametrize(
    "config", [LAYER_NORM, WIDE, ATTENTION_ONLY], ids=["grouped", "wide", "plain"]
)
def test_a_head_s_coordinates_are_orthogonal_and_in_order(config: Config, x64):
    before = tame(config)
    if config.bias == "all":
        before = fold_value_bias(before, config)
    attn = refactor_qk_ov(before, config).blocks.attn
    group = config.n_heads // config.sizes["k"]

    def with_bias(W, b):
        rows = np.asarray(W) if b is None else np.concatenate([W, np.asarray(b)[:, None]], axis=1)
        return rows.transpose(0, 2, 1, 3)

    (Q, K), (before_Q, before_K) = (
        (with_bias(own.W_Q, own.b_Q), with_bias(own.W_K, own.b_K))
        for own in (attn, before.blocks.attn)
    )
    for layer, key in np.ndindex(config.n_layers, config.sizes["k"]):
        heads = slice(group * key, group * (key + 1))
        # The QK and OV circuits are the same...
        for head in range(heads.start, heads.stop):
            agree(Q[layer, head] @ K[layer, key].T, before_Q[layer, head] @ before_K[layer, key].T)
            moved, expected = (
                own.W_V[layer, :, key] @ own.W_O[layer, head] for own in (attn, before.blocks.attn)
            )
            agree(moved, expected)
        # ... with orthogonal coordinates, the strongest first, and equally strong in Q and K.
        grams: dict[str, Any] = {
            "q": sum(q.T @ q for q in Q[layer, heads]),
            "k": K[layer, key].T @ K[layer, key],
            "v": np.asarray(attn.W_V[layer, :, key].T @ attn.W_V[layer, :, key]),
            "o": sum(o @ o.T for o in np.asarray(attn.W_O[layer, heads])),
        }
        for name, gram in grams.items():
            agree(gram, np.diag(np.diag(gram)), name)
            strengths = np.diag(gram)
            assert np.all(strengths[1:] <= strengths[:-1] + 1e-10), name
        agree(grams["q"], grams["k"])
        rank = min(config.d_head, config.d_model)
        agree(np.diag(grams["o"])[:rank], np.ones(rank))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "width", "columns"), [(7, 3, 5), (3, 7, 5), (5, 7, 3), (2, 3, 9)])
def test_the_decomposition_of_a_product_is_that_of_the_matrix(rows, width, columns, x64):
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((rows, width)), rng.standard_normal((width, columns))
    U, S, Vt = map(np.asarray, svd_of_product(jnp.asarray(left), jnp.asarray(right)))
    assert (U.shape, S.shape, Vt.shape) == ((rows, width), (width,), (width, columns))
    agree(U * S @ Vt, left @ right)
    values = np.linalg.svd(left @ right, compute_uv=False)
    agree(S, np.pad(values, (0, width))[:width])


@pytest.mark.slow
def test_folds_work_under_jit_vmap_and_grad(x64):
    seeds = [tame(LAYER_NORM, seed) for seed in range(2)]
    ensemble = jax.tree.map(lambda *arrays: jnp.stack(arrays), *seeds)
    tokens = random_tokens(LAYER_NORM, LENGTH)

    def fold(params):
        params, config = foldable(params, LAYER_NORM)
        for each in (fold_norm, center_writing, center_unembed, fold_value_bias):
            params = each(params, config)
        return params

    together = jax.jit(jax.vmap(lambda params: refactor_qk_ov(fold(params), LAYER_NORM)))(ensemble)
    logits = jax.vmap(lambda params: forward(params, LAYER_NORM, tokens).logits)(together)
    for params, found in zip(seeds, logits, strict=True):
        wanted = jax.nn.log_softmax(forward(params, LAYER_NORM, tokens).logits)
        agree(jax.nn.log_softmax(found), wanted)

    def slopes(prepare):
        def said(params):
            return jax.nn.log_softmax(forward(prepare(params), LAYER_NORM, tokens).logits)[-1, 3]

        return jax.jit(jax.grad(said))(seeds[0])

    jax.tree.map(agree, slopes(fold), slopes(lambda params: params))


@pytest.mark.slow
def test_folds_keep_the_dtype_of_parameters():
    config = dataclasses.replace(LAYER_NORM, n_layers=1)
    params = random_params(config, dtype=jnp.bfloat16)
    for fold in folds(config).values():
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(fold(params, config)))


def test_a_fold_that_does_not_apply_is_refused(x64):
    untied = dataclasses.replace(CLASSIC, tied=False)
    cases = [
        (fold_norm, SEED, ('norm="none"',)),
        (fold_norm, CLASSIC, ("tied=True", "foldable(params, config)")),
        (fold_norm, untied, ("unembed_bias=False", "foldable")),
        (center_writing, MODERN, ('norm="rms"', "center_writing", 'norm="layer"')),
        (center_writing, CLASSIC, ("tied=True", "foldable")),
        (center_unembed, CLASSIC, ("tied=True", "foldable")),
        (fold_value_bias, WINDOWED, ('bias="qkv"', "foldable")),
        (fold_value_bias, SEED, ('bias="none"', "foldable")),
        (refactor_qk, MODERN, ('position="rotary"', "refactor_ov")),
        (fold_norm, dataclasses.replace(LAYER_NORM, bias="all_but_qkv"), ('bias="all_but_qkv"', "qkv", "foldable")),
        (center_writing, dataclasses.replace(LAYER_NORM, norm_place="both"),
         ('norm_place="both"', 'norm_place="before"')),
        (center_unembed, dataclasses.replace(LAYER_NORM, logit_soft_cap=9.0), ("logit_soft_cap=9.0",)),
        (refactor_qk, dataclasses.replace(SEED, qk_norm="head"), ('qk_norm="head"', "refactor_ov")),
        (refactor_qk_ov, MODERN, ('position="rotary"', "refactor_ov")),
    ]  # fmt: skip
    for fold, config, named in cases:
        with raises(ValueError, *named):
            fold(tame(config), config)
    for fold in (foldable, fold_value_bias, refactor_ov):
        with raises(ValueError, "init"):
            fold(unstack(tame(CLASSIC)), CLASSIC)
        with raises(ValueError, "W_pos", "(9, 8)", None):
            fold(tame(SEED), CLASSIC)
