"""Scores of heads: known values for patterns set by hand, and sums in plain numpy for any other."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Compute, Config, Params, abstract, forward
from jaxformer.interp.heads import (
    copying_score,
    duplicate_token_score,
    duplicate_token_target,
    head_scores,
    induction_score,
    induction_target,
    match_score,
    pattern_entropy,
    previous_token_score,
    previous_token_target,
)
from tests.helpers.errors import raises
from tests.helpers.models import MODERN, SEED, WINDOWED, random_params, random_tokens


def looking_back(back: int, length: int) -> np.ndarray:
    """Return the pattern of a head that attends `back` tokens back, or to the current token at the start."""
    pattern, here = np.zeros((length, length), np.float32), np.arange(length)
    pattern[here, np.where(here < back, here, here - back)] = 1.0
    return pattern


def test_a_head_that_only_does_what_is_scored_scores_one():
    previous, induction = looking_back(1, 12), looking_back(4, 12)
    patterns = jnp.asarray(np.stack([previous, induction]))
    np.testing.assert_array_equal(previous_token_score(patterns), [1.0, 0.0])
    np.testing.assert_array_equal(induction_score(patterns, period=5), [0.0, 1.0])
    np.testing.assert_array_equal(pattern_entropy(patterns), [0.0, 0.0])


def test_a_head_with_uniform_attention_has_the_entropy_of_the_uniform_distribution():
    length = 9
    uniform = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    patterns = jnp.asarray(uniform[None], jnp.float32)
    expected = np.log(np.arange(1, length + 1)).mean()
    np.testing.assert_allclose(pattern_entropy(patterns), [expected], rtol=1e-6)
    # A query at t attends to t + 1 tokens equally.
    for score, first in ((previous_token_score(patterns), 2), (induction_score(patterns, 3), 4)):
        expected = (1 / np.arange(first, length + 1)).mean()
        np.testing.assert_allclose(score, [expected], rtol=1e-6)


def test_a_stack_of_layers_scores_as_each_layer_alone():
    rng = np.random.default_rng(0)
    patterns = rng.random((2, 3, 7, 7)).astype(np.float32)
    for score in (previous_token_score, pattern_entropy, lambda p: induction_score(p, 3)):
        stacked = np.asarray(score(jnp.asarray(patterns)))
        assert stacked.shape == (2, 3)
        np.testing.assert_allclose(stacked[1], score(jnp.asarray(patterns[1])), rtol=1e-6)


def test_patterns_that_cannot_be_scored_are_refused():
    with raises(ValueError, 1, 2):
        previous_token_score(jnp.ones((1, 1, 1)))
    with raises(ValueError, 4, 5):
        induction_score(jnp.ones((1, 4, 4)), period=4)
    with raises(ValueError, "period=1", 2):
        induction_score(jnp.ones((1, 4, 4)), period=1)
    rows = jnp.eye(10, k=-1)[None, 4:]  # the queries start later than the keys, as with a cache
    for score in (previous_token_score, partial(induction_score, period=4)):
        with raises(ValueError, 6, 10):
            score(rows)
    with raises(ValueError, 3, 4):
        duplicate_token_score(jnp.ones((1, 4, 4)), jnp.array([1, 2, 1]))
    with raises(ValueError, "target", "(3, 4)", "(4, 4)"):
        match_score(jnp.ones((2, 4, 4)), np.ones((3, 4)))


@pytest.mark.slow
def test_the_entropy_of_a_causal_pattern_has_a_derivative(x64):
    params, tokens = random_params(SEED, dtype=jnp.float64), random_tokens(SEED, 5)

    def entropy(scale):
        scaled = params._replace(W_E=scale * params.W_E)
        pattern = forward(scaled, SEED, tokens, capture=("pattern",)).activations["pattern"]
        return pattern_entropy(pattern).sum()

    by_hand = (entropy(1 + 1e-6) - entropy(1 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(entropy)(1.0), by_hand, rtol=1e-6)


def test_a_traced_token_outside_the_vocabulary_gives_nan():
    params = random_params(SEED)
    score = jax.jit(lambda tokens: head_scores(params, SEED, tokens, "previous_token"))
    assert np.isnan(score(jnp.array([1, 2, SEED.n_vocab, 3]))).all()


def test_scores_are_summed_in_float32():
    pattern = jnp.ones((1, 512, 512), jnp.bfloat16) / 512
    np.testing.assert_allclose(pattern_entropy(pattern), np.log(512), rtol=1e-5)
    assert previous_token_score(pattern).dtype == jnp.float32


TOKENS = np.array([5, 2, 5, 5, 9, 2])


def test_targets_are_what_their_names_say():
    """Compare with the definitions, one pair of tokens at a time."""
    t = len(TOKENS)
    previous, duplicate, induction = np.zeros((3, t, t))
    for here in range(t):
        for there in range(here + 1):
            previous[here, there] = there == here - 1
            duplicate[here, there] = there < here and TOKENS[there] == TOKENS[here]
            induction[here, there] = there > 0 and duplicate[here, there - 1]
    np.testing.assert_array_equal(previous_token_target(t), previous)
    np.testing.assert_array_equal(duplicate_token_target(jnp.asarray(TOKENS)), duplicate)
    np.testing.assert_array_equal(induction_target(jnp.asarray(TOKENS)), induction)
    assert (
        induction[3, 3] == 1
    )  # the second of two equal tokens: its own position follows the first
    assert previous_token_target(1).shape == (1, 1)


def test_a_head_that_attends_only_to_duplicates_scores_one():
    target = duplicate_token_target(jnp.asarray(TOKENS))
    rest = np.eye(len(TOKENS)) * (np.asarray(target).sum(-1, keepdims=True) == 0)
    perfect = np.asarray(target / jnp.maximum(target.sum(-1, keepdims=True), 1)) + rest
    blind = np.eye(len(TOKENS))
    patterns = jnp.asarray(np.stack([perfect, blind, 0.25 * perfect + 0.75 * blind]), jnp.float32)
    scores = duplicate_token_score(patterns, jnp.asarray(TOKENS))
    np.testing.assert_allclose(scores, [1.0, 0.0, 0.25], rtol=1e-6)
    with raises(ValueError, 3):
        duplicate_token_score(patterns[:, :3, :3], jnp.array([1, 2, 3]))
    none = jax.jit(duplicate_token_score)(patterns[:, :3, :3], jnp.array([1, 2, 3]))
    assert np.isnan(none).all()


def matched(pattern, target, measure: str, first: bool, current: bool) -> float:
    """Compute the score from its definition, one entry at a time."""
    attention = hit = missed = 0.0
    for (here, there), p in np.ndenumerate(pattern):
        if (first and there == 0) or (current and here == there):
            continue
        attention += p
        hit += p * target[here, there]
        missed += abs(p - target[here, there])
    return hit / attention if measure == "mul" else 1 - missed / len(pattern)


@pytest.mark.parametrize("measure", ["mul", "abs"])
def test_a_match_is_a_sum_over_pairs_of_tokens(measure: str, x64):
    rng = np.random.default_rng(0)
    patterns = np.tril(rng.random((2, 3, 6, 6)))
    patterns /= patterns.sum(-1, keepdims=True)
    target = np.tril(rng.random((6, 6)))
    before = patterns.copy()
    for first in (False, True):
        for current in (False, True):
            found = match_score(
                jnp.asarray(patterns), target,
                measure=measure, exclude_first=first, exclude_current=current,
            )  # fmt: skip
            each = patterns.reshape(6, 6, 6)
            expected = np.reshape(
                [matched(p, target, measure, first, current) for p in each], (2, 3)
            )
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(patterns, before)


def test_a_match_is_one_for_the_target_itself_and_zero_if_all_is_excluded():
    back = looking_back(1, 6)
    target = jnp.asarray(back)
    asleep = np.zeros_like(back)
    asleep[:, 0] = 1.0
    patterns = jnp.asarray(np.stack([back, asleep, np.eye(6, dtype=np.float32)]))
    thirds = np.array([1.0, 2 / 6, 1 / 6], np.float32)
    np.testing.assert_array_equal(match_score(patterns, target), thirds)
    kept = match_score(patterns, target, exclude_first=True, exclude_current=True)
    np.testing.assert_array_equal(kept, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(match_score(patterns, target, measure="abs")[0], 1.0)
    elsewhere = jnp.asarray(np.roll(back, 3, axis=-1))
    np.testing.assert_array_equal(match_score(patterns, elsewhere, measure="abs")[0], -1.0)
    narrow = match_score(patterns.astype(jnp.bfloat16), back)
    assert narrow.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("config", [SEED, WINDOWED], ids=["seed", "windowed"])
def test_all_heads_are_scored_on_all_prompts_in_one_program(config: Config):
    params = random_params(config)
    prompts = jnp.stack([random_tokens(config, 6, seed) for seed in range(3)])
    run = jax.jit(lambda tokens: forward(params, config, tokens, capture=("pattern",)).activations)
    patterns = jax.vmap(run)(prompts)["pattern"]
    targets, eye = jax.vmap(induction_target)(prompts), np.eye(6, dtype=np.float32)
    scores = partial(head_scores, params, config, prompts, exclude_first=True)
    for target, each in (("induction", targets), (eye, [eye] * 3)):
        found, pairs = scores(target), zip(patterns, each, strict=True)
        expected = [match_score(p, own, exclude_first=True) for p, own in pairs]
        assert found.shape == (config.n_layers, config.n_heads)
        np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-5, atol=1e-6)
    # An array with a pattern for each prompt gives the same as a name.
    np.testing.assert_array_equal(scores(np.asarray(targets)), scores("induction"))


def test_another_target_compiles_nothing():
    """Except the few operations that compute the target, which are compiled beforehand here."""
    params = random_params(SEED)
    prompts = jnp.stack([random_tokens(SEED, 6, seed) for seed in range(3)])
    targets = np.asarray(jax.vmap(induction_target)(prompts)), np.eye(6, dtype=np.float32)
    scores = partial(head_scores, params, SEED, prompts)
    for target in targets:
        scores(target)
    scores("induction", exclude_first=True)
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for target in targets:
            scores(target, exclude_first=True)
        assert not compiled
        scores(targets[0], exclude_current=True)
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_one_prompt_is_a_batch_of_one():
    params, tokens = random_params(MODERN), random_tokens(MODERN, 6)

    def scores(params, tokens):
        return head_scores(params, MODERN, tokens, "previous_token")

    alone = scores(params, tokens)
    np.testing.assert_array_equal(scores(params, tokens[None]), alone)
    np.testing.assert_allclose(jax.jit(scores)(params, tokens), alone, rtol=1e-6)
    slope = jax.grad(lambda params: scores(params, tokens).sum())(params)
    assert np.abs(slope.blocks.attn.W_Q).max() > 0


def by_hand(config: Config, moved: np.ndarray) -> Params:
    """Return a model with one head whose full OV circuit is this matrix; the embedding is the identity."""
    params: Any = jax.tree.map(lambda array: jnp.zeros(array.shape), abstract(config))
    attn = params.blocks.attn._replace(
        W_V=jnp.eye(6)[None, :, None], W_O=jnp.asarray(moved)[None, None]
    )
    return params._replace(W_E=jnp.eye(6), W_U=jnp.eye(6), blocks=params.blocks._replace(attn=attn))


def test_a_head_that_copies_scores_one_and_one_that_suppresses_minus_one(x64):
    config = Config(n_layers=1, d_model=6, n_heads=1, d_head=6, d_mlp=0, n_vocab=6)
    score = jax.jit(copying_score, static_argnums=1)
    half, eye = np.diag([1.0, 1.0, 1.0, -1.0, 0.0, 0.0]), np.eye(6)
    successor = np.roll(eye, 1, axis=1)  # each token raises the logit of the next
    for moved, expected in (
        (eye, 1.0), (-0.5 * eye, -1.0), (half, 0.5), (successor, 0.0), (0 * half, 0.0)
    ):  # fmt: skip
        np.testing.assert_allclose(score(by_hand(config, moved), config), [[expected]], atol=1e-12)


@pytest.mark.parametrize(
    ("tokens", "target", "options", "named"),
    [
        ([1, 2, 3], "copying", {}, ("target='copying'", "'previous_token'", "'induction'")),
        ([1, 2, 3], "induction", {}, ("target='induction'",)),
        ([1, 2, 3], np.eye(4), {}, ("target", "(4, 4)", "(3, 3)")),
        ([1, 2, 3], np.eye(3), {"measure": "cos"}, ("measure='cos'", "'mul'", "'abs'")),
        ([1, 2, 11], np.eye(3), {}, (11, 2)),
        ([[[1]]], np.eye(1), {}, ("tokens", "(1, 1, 1)", "[t]", "[b t]")),
        ([1, 2, 1], "induction", {"compute": Compute(kernel="fused")},
         ("kernel='fused'", "pattern", "kernel='einsum'")),
    ],
)  # fmt: skip
def test_wrong_tokens_and_targets_are_refused(tokens, target, options, named: tuple):
    with raises(ValueError, *named):
        head_scores(random_params(SEED), SEED, jnp.asarray(tokens), target, **options)
