"""Scores of heads: certain on patterns made by hand, and sums over plain numpy indices on any other."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.interp.heads import induction_score, pattern_entropy, previous_token_score


def looking_back(back: int, length: int) -> np.ndarray:
    """A head that attends to the token so far back, or to the current one where there is none."""
    pattern, here = np.zeros((length, length), np.float32), np.arange(length)
    pattern[here, np.where(here < back, here, here - back)] = 1.0
    return pattern


def test_a_head_that_does_nothing_else_scores_one():
    previous, induction = looking_back(1, 12), looking_back(4, 12)
    patterns = jnp.asarray(np.stack([previous, induction]))
    np.testing.assert_array_equal(previous_token_score(patterns), [1.0, 0.0])
    np.testing.assert_array_equal(induction_score(patterns, period=5), [0.0, 1.0])
    np.testing.assert_array_equal(pattern_entropy(patterns), [0.0, 0.0])


def test_a_head_that_looks_everywhere_has_the_entropy_of_that():
    length = 9
    uniform = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    patterns = jnp.asarray(uniform[None], jnp.float32)
    expected = np.log(np.arange(1, length + 1)).mean()
    np.testing.assert_allclose(pattern_entropy(patterns), [expected], rtol=1e-6)
    # A query at t gives each of t + 1 tokens its share.
    np.testing.assert_allclose(
        previous_token_score(patterns), [(1 / np.arange(2, length + 1)).mean()], rtol=1e-6
    )
    np.testing.assert_allclose(
        induction_score(patterns, period=3), [(1 / np.arange(4, length + 1)).mean()], rtol=1e-6
    )


def test_layers_are_scored_as_one_alone():
    rng = np.random.default_rng(0)
    patterns = rng.random((2, 3, 7, 7)).astype(np.float32)
    for score in (previous_token_score, pattern_entropy, lambda p: induction_score(p, 3)):
        stacked = np.asarray(score(jnp.asarray(patterns)))
        assert stacked.shape == (2, 3)
        np.testing.assert_allclose(stacked[1], score(jnp.asarray(patterns[1])), rtol=1e-6)


def test_patterns_without_what_is_looked_for_are_refused():
    with pytest.raises(ValueError, match="a pattern of 1 tokens is too short; give at least 2"):
        previous_token_score(jnp.ones((1, 1, 1)))
    with pytest.raises(ValueError, match="a pattern of 4 tokens is too short; give at least 5"):
        induction_score(jnp.ones((1, 4, 4)), period=4)
    with pytest.raises(ValueError, match="period=1 must be at least 2"):
        induction_score(jnp.ones((1, 4, 4)), period=1)
