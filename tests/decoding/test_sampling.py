"""From logits to a token: every processor against a sort in numpy, every draw against its distribution."""

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
from tests.helpers.errors import raises
from tests.helpers.models import SEED

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


def left(logits: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.where(kept, logits, -np.inf)


@every_dtype
@hypothesis.given(vectors, st.integers(1, V))
def test_top_k_keeps_what_a_sort_puts_first(x64, dtype: str, vector: np.ndarray, k: int):
    logits = vector.astype(dtype)
    expected = left(logits, sorted_top_k(logits, k))
    np.testing.assert_array_equal(compiled[top_k](jnp.asarray(logits), k), expected)


@every_dtype
@hypothesis.given(vectors, st.floats(0.01, 0.99))
def test_top_p_keeps_what_a_sort_puts_first(x64, dtype: str, vector: np.ndarray, p: float):
    logits = vector.astype(dtype)
    sums = np.cumsum(np.sort(probabilities(logits.astype(np.float64)))[::-1])
    hypothesis.assume(np.abs(sums - p).min() > 1e-5)  # nearer, rounding decides
    expected = left(logits, sorted_top_p(logits.astype(np.float64), p))
    np.testing.assert_array_equal(compiled[top_p](jnp.asarray(logits), p), expected)


@every_dtype
@hypothesis.given(vectors, st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_likely_enough(x64, dtype: str, vector: np.ndarray, p: float):
    logits = vector.astype(dtype)
    wide = logits.astype(np.float64)
    ratio = wide - wide.max() - np.log(p)
    near = np.abs(ratio) <= 1e-5 * (1 + np.abs(wide.max()))  # there rounding decides
    certain = (wide == wide.max()) | (p == 1.0) | ~near
    kept = wide == wide.max() if p == 1.0 else (ratio >= 0) | (wide == wide.max())
    found = np.asarray(compiled[min_p](jnp.asarray(logits), p))
    np.testing.assert_array_equal(found[certain], left(logits, kept)[certain])
    assert ((found == logits) | (found == -np.inf)).all()


@every_dtype
@hypothesis.given(vectors, arrays.arrays(bool, V), st.floats(0.25, 4.0))
def test_a_penalty_acts_on_the_tokens_seen(
    x64, dtype: str, vector: np.ndarray, seen: np.ndarray, by: float
):
    logits = vector.astype(dtype)
    by_sign = np.where(logits > 0, logits / logits.dtype.type(by), logits * logits.dtype.type(by))
    penalized = compiled[penalize](jnp.asarray(logits), jnp.asarray(seen), by)
    least = float(np.finfo(dtype).tiny)  # XLA makes 0 of what is smaller
    np.testing.assert_allclose(penalized, np.where(seen, by_sign, logits), rtol=1e-6, atol=least)


@every_dtype
@hypothesis.given(vectors, st.floats(0.1, 10.0))
def test_heat_divides_the_distances_to_the_likeliest(
    x64, dtype: str, vector: np.ndarray, by: float
):
    logits = vector.astype(dtype)
    expected = (logits - logits.max()) / logits.dtype.type(by)
    least = float(np.finfo(dtype).tiny)
    found = compiled[heat](jnp.asarray(logits), by)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=least)


@hypothesis.given(vectors)
def test_a_k_of_all_and_a_p_of_one_keep_everything(vector: np.ndarray):
    logits = jnp.asarray(vector, jnp.float32)
    for keep, most in ((top_k, V), (top_p, 1.0), (min_p, 0.0)):
        np.testing.assert_array_equal(compiled[keep](logits, most), logits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_logits_are_ordered_as_well(dtype: str):
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
    """The p-value of the counts, and the degrees of freedom; what cannot happen must not have."""
    possible = expected > 0
    assert not counts[~possible].any()
    expected = expected[possible] * counts.sum()
    statistic = (np.square(counts[possible] - expected) / expected).sum()
    freedom = int(possible.sum()) - 1
    return float(jax.scipy.stats.chi2.sf(jnp.float32(statistic), jnp.float32(freedom))), freedom


def drawn(sampling: Sampling) -> np.ndarray:
    """How often each token comes in 20,000 draws."""
    keys = jax.random.split(jax.random.key(7), 20_000)
    tokens = jax.jit(jax.vmap(choose, in_axes=(0, None, None, None)))(keys, sampling, LOGITS, SEEN)
    return np.bincount(tokens, minlength=V)


def by_sorting(sampling: Sampling) -> np.ndarray:
    """The exact distribution."""
    logits = np.asarray(LOGITS, np.float64)
    if (by := sampling.repetition_penalty) is not None:
        logits = np.where(np.asarray(SEEN), np.where(logits > 0, logits / by, logits * by), logits)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = left(logits, sorted_top_k(logits, sampling.top_k))
    if sampling.top_p is not None:
        logits = left(logits, sorted_top_p(logits, sampling.top_p))
    if sampling.min_p is not None:
        logits = left(logits, logits >= logits.max() + np.log(sampling.min_p))
    return probabilities(logits)


@pytest.mark.parametrize(
    ("sampling", "freedom"),
    [
        (Sampling(), 8), (Sampling(temperature=0.6), 8), (Sampling(temperature=2.5), 8), (Sampling(top_k=3), 2),
        (Sampling(top_k=5), 4),  # two are equally likely
        (Sampling(top_p=0.75), 4), (Sampling(min_p=0.3), 2), (Sampling(repetition_penalty=1.8), 8), (ALL, 2),
    ],
    ids=str,
)  # fmt: skip
def test_draws_follow_their_distribution(sampling: Sampling, freedom: int):
    likely, found = chi_square(drawn(sampling), by_sorting(sampling))
    assert found == freedom
    assert likely > 1e-3


def test_draws_at_another_temperature_are_told_apart():
    likely, _ = chi_square(drawn(Sampling(temperature=0.9)), by_sorting(Sampling()))
    assert likely < 1e-6


@pytest.mark.parametrize("zero", [0, 0.0, None, jnp.float32(0), 1e-38, jnp.float32(1e-38)])
@pytest.mark.parametrize("scale", [1.0, 1e6, -1e6])
def test_a_temperature_of_zero_takes_the_likeliest(zero, scale: float):
    """Traced or not, and however large the logits."""
    logits = jnp.array([5.0, 6.0, 7.0, 6.5]) * scale
    for how in (choose, jax.jit(choose)):
        assert int(how(jax.random.key(0), Sampling(temperature=zero), logits)) == logits.argmax()


@pytest.mark.slow
def test_another_number_compiles_nothing_anew():
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


def test_a_program_gets_each_number_in_one_type():
    """For another type of number would be another program."""
    for temperature in (1, 1.0, np.float32(1)):
        fitted = Sampling(temperature=temperature, top_k=np.int8(3), top_p=1).fitted(SEED)
        types = [type(number) for number in jax.tree.leaves(fitted)]
        assert types == [float, int, float]
    assert Sampling(temperature=0).fitted(SEED).temperature is None


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


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": -0.1}, ("temperature=-0.1", 0)), ({"temperature": float("inf")}, ("temperature=inf", 0)),
        ({"temperature": float("nan")}, ("temperature=nan", 0)), ({"temperature": "hot"}, ("temperature='hot'", 0)),
        ({"temperature": True}, ("temperature=True", 0)), ({"top_k": 0}, ("top_k=0", 1)),
        ({"top_k": 1.5}, ("top_k=1.5",)), ({"top_k": float("inf")}, ("top_k=inf", 1)),
        ({"top_k": float("nan")}, ("top_k=nan", 1)), ({"top_p": 0.0}, ("top_p=0.0", 1)),
        ({"top_p": 1.1}, ("top_p=1.1",)), ({"min_p": -0.1}, ("min_p=-0.1", 1)), ({"min_p": 2}, ("min_p=2", 0, 1)),
        ({"repetition_penalty": 0}, ("repetition_penalty=0",)),
        ({"repetition_penalty": float("inf")}, ("repetition_penalty=inf",)),
        ({"temperature": [1.0]}, ("temperature=[1.0]",)),
        ({"temperature": np.float32("nan")}, ("temperature=nan", 0)), ({"top_k": np.int64(0)}, ("top_k=0", 1)),
        ({"top_k": jnp.int32(0)}, ("top_k=0", 1)), ({"top_p": np.float32(0)}, ("top_p=0.0", 1)),
        ({"min_p": np.array(2.0)}, ("min_p=2.0", 1)),
        ({"temperature": np.float32(0), "top_k": 3}, ("temperature=0", "top_k=3")),
        ({"temperature": 0, "top_k": 3}, ("temperature=0", "top_k=3")),
        ({"temperature": None, "top_p": 0.5}, ("temperature=0", "top_p=0.5")),
        ({"temperature": 0.0, "min_p": 0.5}, ("temperature=0", "min_p=0.5")),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(fields: dict, named: tuple):
    with raises(ValueError, *named):
        Sampling(**fields)


@pytest.mark.parametrize("k", [12, 12.0])
def test_more_than_the_vocabulary_cannot_be_kept(k):
    with raises(ValueError, f"top_k={k}", 11):
        Sampling(top_k=k).fitted(SEED)
    assert Sampling(top_k=11).fitted(SEED) == Sampling(top_k=11)
