"""The fields of Sampling: which numbers they take, and in which form a program gets them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Sampling
from tests.helpers.errors import raises
from tests.helpers.models import SEED


def test_fitted_gives_each_field_one_type():
    """Another type of number would recompile."""
    for temperature in (1, 1.0, np.float32(1)):
        fitted = Sampling(temperature=temperature, top_k=np.int8(3), top_p=1).fitted(SEED)
        types = [type(number) for number in jax.tree.leaves(fitted)]
        assert types == [float, int, float]
    assert Sampling(temperature=0).fitted(SEED).temperature is None


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
def test_invalid_numbers_are_refused(fields: dict, named: tuple):
    with raises(ValueError, *named):
        Sampling(**fields)


@pytest.mark.parametrize("k", [12, 12.0])
def test_top_k_above_the_vocabulary_is_refused(k):
    with raises(ValueError, f"top_k={k}", 11):
        Sampling(top_k=k).fitted(SEED)
    assert Sampling(top_k=11).fitted(SEED) == Sampling(top_k=11)


def test_a_temperature_beside_a_sampling_is_that_of_the_sampling():
    assert Sampling().at(0.5) == Sampling(temperature=0.5)
    assert Sampling(top_p=0.9).at(0.5) == Sampling(temperature=0.5, top_p=0.9)
    assert Sampling(temperature=0.7).at(None) == Sampling(temperature=0.7)
    assert Sampling().at(0).greedy
    for sampling in (Sampling(temperature=0.7), Sampling(temperature=0)):
        with raises(ValueError, "temperature=0.5", "sampling"):
            sampling.at(0.5)
    with raises(ValueError, "temperature=-1"):
        Sampling().at(-1)
    with raises(ValueError, "temperature=0", "top_k=3"):
        Sampling(top_k=3).at(0)
