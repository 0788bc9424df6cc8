"""Beam search is greedy at width 1, and exhaustive if the beam is wide enough."""

import dataclasses
import inspect
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import beam_search, generate, score
from tests.helpers.errors import raises
from tests.helpers.models import SEED, random_params
from tests.helpers.texts import GREEDY, LONG

PROMPT = [3, 1, 4]
MODELS = LONG | {"no layers": dataclasses.replace(SEED, n_layers=0)}


@pytest.mark.slow(unless=("no layers",))
@pytest.mark.parametrize("name", ["seed", "classic", "windowed", "no layers"])
def test_a_beam_of_one_is_greedy(name: str):
    params, config = random_params(MODELS[name]), MODELS[name]
    greedy = generate(params, config, PROMPT, 8, jax.random.key(0), sampling=GREEDY)
    unchecked: Any = inspect.unwrap(beam_search)  # without the type checks that only tests have
    found = unchecked(params, config, PROMPT, np.int64(8), np.int64(1))
    np.testing.assert_array_equal(found.tokens[0], greedy.tokens)
    np.testing.assert_allclose(found.log_probs[0], greedy.log_probs.sum(), rtol=1e-5)


@pytest.mark.slow
def test_a_beam_as_wide_as_the_vocabulary_finds_the_most_probable_pairs(x64):
    """The beam keeps every first token, so it cannot miss a continuation of two tokens."""
    params = random_params(SEED, dtype=jnp.float64)
    pairs = np.array(list(itertools.product(range(SEED.n_vocab), repeat=2)))
    texts = jnp.array([[*PROMPT, *pair] for pair in pairs], jnp.int32)
    totals = jax.vmap(lambda text: score(params, SEED, text)[-2:].sum())(texts)
    best = np.argsort(-np.asarray(totals))[: SEED.n_vocab]
    found = beam_search(params, SEED, PROMPT, 2, SEED.n_vocab)
    np.testing.assert_array_equal(found.tokens, pairs[best])
    np.testing.assert_allclose(found.log_probs, totals[best], rtol=0, atol=1e-10)


@pytest.mark.slow(unless=("no layers",))
@pytest.mark.parametrize("name", ["modern", "no layers"])
def test_each_log_probability_is_the_score_of_its_text(name: str):
    params, config = random_params(MODELS[name]), MODELS[name]
    found = beam_search(params, config, PROMPT, 12, 4)
    assert len(np.unique(found.tokens, axis=0)) == 4
    assert (np.diff(found.log_probs) <= 0).all()
    for tokens, total in zip(found.tokens, found.log_probs, strict=True):
        text = jnp.array([*PROMPT, *tokens.tolist()], jnp.int32)
        expected = score(params, config, text)[len(PROMPT) - 1 :].sum()
        np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 0}, ("width=0", 1, 11)), ({"width": 12}, ("width=12", 1, 11)),
        ({"prompt": [[1], [2]]}, ("beam_search", "prompt")), ({"n_tokens": 0}, ("n_tokens=0", 1)),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(change: dict, named: tuple):
    arguments = {"prompt": PROMPT, "n_tokens": 3, "width": 2} | change
    with raises(ValueError, *named):
        beam_search(random_params(SEED), SEED, **arguments)


def test_logits_that_are_nan_are_refused():
    params = jax.tree.map(lambda array: array * jnp.nan, random_params(SEED))
    with raises(ValueError, "logits", "NaN"):
        beam_search(params, SEED, PROMPT, 3, 2)
