"""Sampling: every processor equals a sort in NumPy, and samples follow their exact distribution."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays

from jaxformer import Sampling
from jaxformer.decoding.sampling import choose, heat, min_p, penalize, process, top_k, top_p

V = 9
LOGITS = jnp.array([2.0, -1.0, 0.5, 0.5, 1.0, -3.0, 0.0, 1.5, -0.5])
SEEN = jnp.array([True, True] + [False] * 5 + [True, False])
coordinates = st.one_of(
    st.sampled_from([-np.inf, 0.0, -0.0, 1.0, -2.5]),  # ties
    st.floats(-10, 10, width=32, allow_subnormal=False),
    st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False),
)
vectors = arrays.arrays(np.float64, V, elements=coordinates).filter(
    lambda vector: np.isfinite(vector).any()
)
compiled = {keep: jax.jit(keep) for keep in (top_k, top_p, min_p, penalize, heat)}
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def sorted_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    return logits >= np.sort(logits)[::-1][k - 1]


def sorted_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    order = np.argsort(-logits)
    enough = np.argmax(np.cumsum(probabilities(logits)[order]) >= p)
    return logits >= logits[order[enough]]


def masked(logits: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.where(kept, logits, -np.inf)


@every_dtype
@hypothesis.given(vectors, st.integers(1, V))
def test_top_k_keeps_what_a_sort_puts_first(x64, dtype: str, vector: np.ndarray, k: int):
    logits = vector.astype(dtype)
    expected = masked(logits, sorted_top_k(logits, k))
    np.testing.assert_array_equal(compiled[top_k](jnp.asarray(logits), k), expected)


@every_dtype
@hypothesis.given(vectors, st.floats(0.01, 0.99))
def test_top_p_keeps_what_a_sort_puts_first(x64, dtype: str, vector: np.ndarray, p: float):
    logits = vector.astype(dtype)
    sums = np.cumsum(np.sort(probabilities(logits.astype(np.float64)))[::-1])
    hypothesis.assume(np.abs(sums - p).min() > 1e-5)  # closer values depend on rounding
    expected = masked(logits, sorted_top_p(logits.astype(np.float64), p))
    np.testing.assert_array_equal(compiled[top_p](jnp.asarray(logits), p), expected)


@every_dtype
@hypothesis.given(vectors, st.floats(0.01, 1.0))
def test_min_p_keeps_probabilities_of_at_least_p_times_the_largest(
    x64, dtype: str, vector: np.ndarray, p: float
):
    logits = vector.astype(dtype)
    wide = logits.astype(np.float64)
    ratio = wide - wide.max() - np.log(p)
    near = np.abs(ratio) <= 1e-5 * (1 + np.abs(wide.max()))  # closer values depend on rounding
    certain = (wide == wide.max()) | (p == 1.0) | ~near
    kept = wide == wide.max() if p == 1.0 else (ratio >= 0) | (wide == wide.max())
    found = np.asarray(compiled[min_p](jnp.asarray(logits), p))
    np.testing.assert_array_equal(found[certain], masked(logits, kept)[certain])
    assert ((found == logits) | (found == -np.inf)).all()


@every_dtype
@hypothesis.given(vectors, arrays.arrays(bool, V), st.floats(0.25, 4.0))
def test_a_penalty_acts_on_the_tokens_seen(
    x64, dtype: str, vector: np.ndarray, seen: np.ndarray, by: float
):
    logits = vector.astype(dtype)
    by_sign = np.where(logits > 0, logits / logits.dtype.type(by), logits * logits.dtype.type(by))
    penalized = compiled[penalize](jnp.asarray(logits), jnp.asarray(seen), by)
    least = float(np.finfo(dtype).tiny)  # XLA flushes smaller numbers to 0
    np.testing.assert_allclose(penalized, np.where(seen, by_sign, logits), rtol=1e-6, atol=least)


@every_dtype
@hypothesis.given(vectors, st.floats(0.1, 10.0))
def test_heat_divides_the_differences_from_the_largest_logit(
    x64, dtype: str, vector: np.ndarray, by: float
):
    logits = vector.astype(dtype)
    expected = (logits - logits.max()) / logits.dtype.type(by)
    least = float(np.finfo(dtype).tiny)
    found = compiled[heat](jnp.asarray(logits), by)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=least)


@hypothesis.given(vectors)
def test_neutral_parameters_keep_every_token(vector: np.ndarray):
    logits = jnp.asarray(vector, jnp.float32)
    for keep, most in ((top_k, V), (top_p, 1.0), (min_p, 0.0)):
        np.testing.assert_array_equal(compiled[keep](logits, most), logits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_top_k_and_top_p_take_narrow_dtypes(dtype: str):
    logits = LOGITS.astype(dtype)
    wide = np.asarray(LOGITS)
    np.testing.assert_array_equal(top_k(logits, 4) > -jnp.inf, sorted_top_k(wide, 4))
    np.testing.assert_array_equal(top_p(logits, 0.7) > -jnp.inf, sorted_top_p(wide, 0.7))


ALL = Sampling(temperature=0.7, top_k=5, top_p=0.8, min_p=0.3, repetition_penalty=1.4)


def test_the_processors_act_in_the_order_of_the_fields():
    logits = heat(penalize(LOGITS, SEEN, 1.4), 0.7)
    expected = min_p(top_p(top_k(logits, 5), 0.8), 0.3)
    np.testing.assert_array_equal(process(ALL, LOGITS, SEEN), expected)
    other = heat(min_p(top_p(top_k(penalize(LOGITS, SEEN, 1.4), 5), 0.8), 0.3), 0.7)
    assert not np.array_equal(expected > -np.inf, other > -np.inf)  # the order matters
    np.testing.assert_array_equal(process(Sampling(temperature=0), LOGITS), LOGITS)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    """Return the p-value of the counts and the degrees of freedom; check that impossible tokens never occurred."""
    possible = expected > 0
    assert not counts[~possible].any()
    expected = expected[possible] * counts.sum()
    statistic = (np.square(counts[possible] - expected) / expected).sum()
    freedom = int(possible.sum()) - 1
    return float(jax.scipy.stats.chi2.sf(jnp.float32(statistic), jnp.float32(freedom))), freedom


def sampled_counts(sampling: Sampling) -> np.ndarray:
    """Count each token in 20,000 samples."""
    keys = jax.random.split(jax.random.key(7), 20_000)
    tokens = jax.jit(jax.vmap(choose, in_axes=(0, None, None, None)))(keys, sampling, LOGITS, SEEN)
    return np.bincount(tokens, minlength=V)


def exact_distribution(sampling: Sampling) -> np.ndarray:
    """Return the exact distribution, computed by sorting in NumPy."""
    logits = np.asarray(LOGITS, np.float64)
    if (by := sampling.repetition_penalty) is not None:
        logits = np.where(np.asarray(SEEN), np.where(logits > 0, logits / by, logits * by), logits)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = masked(logits, sorted_top_k(logits, sampling.top_k))
    if sampling.top_p is not None:
        logits = masked(logits, sorted_top_p(logits, sampling.top_p))
    if sampling.min_p is not None:
        logits = masked(logits, logits >= logits.max() + np.log(sampling.min_p))
    return probabilities(logits)


@pytest.mark.parametrize(
    ("sampling", "freedom"),
    [
        (Sampling(), 8), (Sampling(temperature=0.6), 8), (Sampling(temperature=2.5), 8), (Sampling(top_k=3), 2),
        (Sampling(top_k=5), 4),  # two tokens tie
        (Sampling(top_p=0.75), 4), (Sampling(min_p=0.3), 2), (Sampling(repetition_penalty=1.8), 8), (ALL, 2),
    ],
    ids=str,
)  # fmt: skip
def test_samples_follow_their_distribution(sampling: Sampling, freedom: int):
    p_value, found = chi_square(sampled_counts(sampling), exact_distribution(sampling))
    assert found == freedom
    assert p_value > 1e-3


def test_the_chi_square_test_detects_another_temperature():
    p_value, _ = chi_square(
        sampled_counts(Sampling(temperature=0.9)), exact_distribution(Sampling())
    )
    assert p_value < 1e-6


@pytest.mark.parametrize("zero", [0, 0.0, None, jnp.float32(0), 1e-38, jnp.float32(1e-38)])
@pytest.mark.parametrize("scale", [1.0, 1e6, -1e6])
def test_a_temperature_of_zero_is_greedy(zero, scale: float):
    """Traced or not, for logits of any size."""
    logits = jnp.array([5.0, 6.0, 7.0, 6.5]) * scale
    for run in (choose, jax.jit(choose)):
        assert int(run(jax.random.key(0), Sampling(temperature=zero), logits)) == logits.argmax()


@pytest.mark.slow
def test_another_number_does_not_recompile():
    traces = []

    @jax.jit
    def step(key, sampling, logits, seen):
        traces.append(sampling)
        return choose(key, sampling, logits, seen)

    changes = ({}, {"temperature": 1.5}, {"top_k": 2}, {"top_p": 0.1, "repetition_penalty": 3.0})
    for change in changes:
        for key in jax.random.split(jax.random.key(0), 5):
            arguments = key, dataclasses.replace(ALL, **change), LOGITS, SEEN
            assert int(step(*arguments)) == int(choose(*arguments))
    assert len(traces) == 1


@pytest.mark.slow
def test_temperatures_can_be_batched():
    temperatures = jnp.array([0.0, 0.5, 1.0, 3.0])
    keys = jax.random.split(jax.random.key(3), 50)

    def each(temperature):
        sampling = Sampling(temperature=temperature, top_k=6)
        return jax.vmap(lambda key: choose(key, sampling, LOGITS))(keys)

    together = jax.vmap(each)(temperatures)
    one_by_one = [each(float(t) or jnp.float32(0)) for t in temperatures]
    np.testing.assert_array_equal(together, one_by_one)
    assert (together[0] == LOGITS.argmax()).all()
    assert len(set(together[3].tolist())) > 1
