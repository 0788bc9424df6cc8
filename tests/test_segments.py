"""Packed documents: packed = apart, for the logits, the loss and its gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Compute, Config, empty_cache, forward, loss, perplexity, score
from jaxformer.checks import check_segments
from jaxformer.config import Kernel
from tests.helpers.errors import raises
from tests.helpers.models import NAMED, SEED, every_model, random_params, random_tokens

LENGTHS = (4, 1, 5, 2)


def documents(config: Config) -> tuple[list[Any], Any, np.ndarray]:
    """Some documents, the same packed into one sequence, and its segments: a number may come again."""
    packed = random_tokens(config, sum(LENGTHS))
    apart = jnp.split(packed, np.cumsum(LENGTHS)[:-1])
    return apart, packed, np.repeat([3, 0, 3, 1], LENGTHS)


@every_model
def test_packed_documents_give_what_they_give_apart(name: str, x64):
    config = NAMED[name]
    params = random_params(config, dtype=jnp.float64)
    apart, packed, segments = documents(config)
    out = forward(params, config, packed, segments=segments, capture=("resid_post",))
    alone = [forward(params, config, one, capture=("resid_post",)) for one in apart]
    expected = np.concatenate([one.logits for one in alone])
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=1e-12)
    states = np.concatenate([one.activations["resid_post"] for one in alone], axis=1)
    np.testing.assert_allclose(out.activations["resid_post"], states, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["blocked", "fused"])
def test_with_every_kernel(kernel: Kernel):
    config = NAMED["modern"]
    params, (_, packed, segments) = random_params(config), documents(config)
    expected = forward(params, config, packed, segments=segments).logits
    found = forward(params, config, packed, segments=segments, compute=Compute(kernel=kernel))
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 4])
def test_no_target_crosses_a_boundary(chunk: int | None, x64):
    config = NAMED["classic"]
    params = random_params(config, dtype=jnp.float64)
    apart, packed, segments = documents(config)
    found = score(params, config, packed, segments=segments, vocab_chunk=chunk)
    scores = [score(params, config, one) if len(one) > 1 else jnp.zeros(0) for one in apart]
    expected = np.concatenate([part for one in scores for part in (np.zeros(1), one)])[1:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    targets = sum(LENGTHS) - len(LENGTHS)
    mean = loss(params, config, packed, segments=segments, vocab_chunk=chunk)
    np.testing.assert_allclose(mean, -expected.sum() / targets, rtol=1e-12)
    confused = perplexity(params, config, packed, segments=segments)
    np.testing.assert_allclose(confused, np.exp(mean), rtol=1e-12)


def test_the_gradient_of_packed_documents_is_the_mean_over_their_targets(x64):
    params = random_params(SEED, dtype=jnp.float64)
    apart, packed, segments = documents(SEED)

    def by_hand(params):
        total = sum(score(params, SEED, one).sum() for one in apart if len(one) > 1)
        return -total / (sum(LENGTHS) - len(LENGTHS))

    found = jax.grad(loss)(params, SEED, packed, segments=segments)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, jax.grad(by_hand)(params)
    )  # fmt: skip


def test_padding_has_no_score_and_changes_nothing():
    params, tokens = random_params(SEED), random_tokens(SEED, 5)
    padded = jnp.append(tokens, jnp.zeros(3, tokens.dtype))
    segments = [0] * 5 + [-1] * 3
    np.testing.assert_allclose(
        forward(params, SEED, padded).logits[:5], forward(params, SEED, tokens).logits, rtol=1e-5, atol=1e-5
    )  # fmt: skip
    found = score(params, SEED, padded, segments=segments)
    np.testing.assert_allclose(found[:4], score(params, SEED, tokens), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[4:], 0)
    expected = loss(params, SEED, tokens)
    np.testing.assert_allclose(loss(params, SEED, padded, segments=segments), expected, rtol=1e-5)
    assert loss(params, SEED, tokens, segments=[-1] * 5) == 0  # nothing to predict


def test_segments_may_be_traced_and_batched():
    params, (_, packed, segments) = random_params(SEED), documents(SEED)
    rows = jnp.stack([segments, np.zeros_like(segments)])
    found = jax.jit(jax.vmap(lambda row: loss(params, SEED, packed, segments=row)))(rows)
    expected = [loss(params, SEED, packed, segments=segments), loss(params, SEED, packed)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_wrong_segments_are_sentences():
    params, tokens = random_params(SEED), random_tokens(SEED, 4)
    with raises(ValueError, "segments", 3, 4):
        forward(params, SEED, tokens, segments=[0, 0, 1])
    with raises(ValueError, "segments", "float64", "integers"):
        check_segments(np.zeros(4), 4, None)
    with raises(ValueError, 9, 4):
        loss(params, SEED, tokens, segments=[0] * 9)
    with raises(ValueError, "segments", "cache"):
        forward(params, SEED, tokens, empty_cache(SEED, 4), segments=[0, 0, 1, 1])


def test_a_document_has_to_fit_the_position_table_and_the_sequence_does_not():
    config = NAMED["classic"]  # n_context=9
    params, tokens = random_params(config), random_tokens(config, 12)
    assert jnp.isfinite(forward(params, config, tokens, segments=[0] * 6 + [1] * 6).logits).all()
    with raises(ValueError, 10, "n_context=9"):
        forward(params, config, tokens, segments=[0] * 2 + [1] * 10)
    traced = jax.jit(lambda s: forward(params, config, tokens, segments=s).logits)
    found = traced(jnp.array([0] * 2 + [1] * 10))
    assert jnp.isnan(found).all()  # a weight of 0 times NaN is NaN


@pytest.mark.parametrize("first", [5 * 2**32, 2**31, 3_000_000_000])
def test_any_integer_is_a_segment(first: int):
    """Hashes as segments would be truncated to 32 bits by JAX."""
    params, tokens = random_params(SEED), random_tokens(SEED, 8)
    expected = loss(params, SEED, tokens, segments=[0] * 4 + [1] * 4)
    found = loss(params, SEED, tokens, segments=[first] * 4 + [first + 2**32] * 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    logits = forward(params, SEED, tokens, segments=np.repeat([first, first + 2**32], 4)).logits
    again = forward(params, SEED, tokens, segments=[0] * 4 + [1] * 4).logits
    np.testing.assert_allclose(logits, again, rtol=1e-6)
