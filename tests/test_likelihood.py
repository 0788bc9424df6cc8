"""How likely a model finds a text: by hand, summed over all texts, and at the edges."""

import dataclasses
import inspect
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Compute, forward, loss, perplexity, score
from tests.helpers.errors import raises
from tests.helpers.models import NAMED, SEED, every_model, random_params, random_tokens
from train.data.batches import Batch
from train.step import summed_loss


@every_model
def test_a_score_is_the_log_softmax_of_the_logits_before(name: str, x64):
    config = NAMED[name]
    params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, 7)
    logits = np.asarray(forward(params, config, tokens).logits)
    totals = np.log(np.exp(logits).sum(axis=1))
    by_hand = [logits[t, token] - totals[t] for t, token in enumerate(tokens[1:].tolist())]
    np.testing.assert_allclose(score(params, config, tokens), by_hand, rtol=0, atol=1e-12)
    expected = np.exp(-np.mean(by_hand))
    np.testing.assert_allclose(perplexity(params, config, tokens), expected, rtol=1e-12)


@pytest.mark.slow
@every_model
def test_the_chances_of_all_continuations_sum_to_one(name: str, x64):
    config = NAMED[name]
    params, prompt = random_params(config, dtype=jnp.float64), random_tokens(config, 3)
    pairs = jnp.array(list(itertools.product(range(config.n_vocab), repeat=2)), jnp.int32)
    texts = jnp.concatenate([jnp.tile(prompt, (len(pairs), 1)), pairs], axis=1)
    scores = jax.vmap(score, in_axes=(None, None, 0))(params, config, texts)
    np.testing.assert_allclose(scores[0], score(params, config, texts[0]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.exp(scores[:, -2:].sum(axis=1)).sum(), 1.0, rtol=1e-12)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large():
    params = random_params(SEED)._replace(W_U=jnp.zeros((8, 11)))
    found = perplexity(params, SEED, random_tokens(SEED, 5))
    np.testing.assert_allclose(found, SEED.n_vocab, rtol=1e-6)


def test_a_position_table_limits_what_is_read_and_the_last_token_is_not():
    config = NAMED["classic"]
    params = random_params(config)
    assert np.isfinite(score(params, config, random_tokens(config, 10))).all()
    with raises(ValueError, 10, "n_context=9"):
        score(params, config, random_tokens(config, 11))


@pytest.mark.parametrize("token", [-1, 11])
@pytest.mark.parametrize("place", [2, 5])
def test_a_token_outside_the_vocabulary_is_refused_or_gives_nan(token: int, place: int):
    params, tokens = random_params(SEED), random_tokens(SEED, 6).at[place].set(token)
    with raises(ValueError, token, place, 11):
        score(params, SEED, tokens)
    traced = jax.jit(score)(params, SEED, tokens)
    assert np.isnan(traced[place - 1 :]).all()


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("door", [score, perplexity])
def test_one_token_cannot_be_scored(door, length: int):
    with raises(ValueError, length):
        door(random_params(SEED), SEED, jnp.zeros(length, jnp.int32))


def test_a_lone_number_cannot_be_scored():
    with raises(ValueError, "()"):
        inspect.unwrap(score)(random_params(SEED), SEED, 3)
    with raises(ValueError, 1, "two"):
        score(random_params(SEED), SEED, [3])


def test_an_edit_and_a_compute_are_those_of_forward():
    params, tokens = random_params(SEED), random_tokens(SEED, 6)

    def forget(site, layer, value):
        return value * 0.0 if site == "final" else value

    blind = score(params, SEED, tokens, edit=forget)
    np.testing.assert_allclose(blind, np.full(5, -np.log(11)), rtol=1e-6)
    np.testing.assert_allclose(perplexity(params, SEED, tokens, edit=forget), 11, rtol=1e-6)
    plain = score(params, SEED, tokens)
    narrow = score(params, SEED, tokens, compute=Compute(dtype="bfloat16"))
    assert not np.array_equal(plain, narrow)
    np.testing.assert_allclose(narrow, plain, rtol=0, atol=0.05 * float(jnp.abs(plain).max()))


@pytest.mark.parametrize("chunk", [None, 4])
def test_capture_gives_what_forward_captures(chunk: int | None):
    params, tokens = random_params(SEED), random_tokens(SEED, 6)
    plain = score(params, SEED, tokens)
    sites = ("z", "final")
    scores, activations = score(params, SEED, tokens, capture=sites, vocab_chunk=chunk)
    np.testing.assert_allclose(scores, plain, rtol=1e-5, atol=1e-5)
    expected = forward(params, SEED, tokens[:-1], capture=sites).activations
    assert activations.keys() == expected.keys()
    for site in sites:
        np.testing.assert_allclose(activations[site], expected[site], rtol=1e-5, atol=1e-6)
    assert "logits" in score(params, SEED, tokens, capture="all")[1]


def test_the_loss_is_the_mean_of_the_scores_and_what_train_minimises():
    params, tokens = random_params(SEED), random_tokens(SEED, 6)
    value = loss(params, SEED, tokens)
    np.testing.assert_allclose(value, -score(params, SEED, tokens).mean(), rtol=1e-6)
    batch = Batch(tokens[None], jnp.ones((1, 5), bool))
    np.testing.assert_allclose(summed_loss(params, SEED, batch), 5 * value, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("chunk", [None, 64])
def test_tokens_of_any_integer_type_have_the_same_scores(dtype: str, chunk: int | None):
    """A comparison in the tokens' own type would wrap: 300 is 44 in uint8."""
    config = dataclasses.replace(SEED, n_layers=1, n_vocab=300)
    params, tokens = random_params(config), [100, 120, 5, 99]
    expected = score(params, config, tokens)
    found = score(params, config, np.array(tokens, dtype), vocab_chunk=chunk)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_traced_wide_token_does_not_wrap(chunk: int | None, x64):
    params = random_params(SEED, dtype=jnp.float64)
    tokens = jnp.array([3, 1, 4, 2**32 + 1])
    found = jax.jit(partial(score, params, SEED, vocab_chunk=chunk))(tokens)
    assert np.isnan(found).tolist() == [False, False, True]
