"""In float64, where laws are exact: tame parameters, a pass with everything in it, and what agrees."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import Config, available_sites, forward
from tests.helpers.models import random_params, random_tokens

LENGTH = 5


def tame(config: Config, seed: int = 0) -> Any:
    """Float64 parameters under which no stream without norms explodes, so that 1e-10 means something."""
    return jax.tree.map(lambda array: 0.5 * array, random_params(config, seed, jnp.float64))


def agree(found: Any, expected: Any, what: Any = "") -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    bound = 1e-10 * max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=str(what))


@cache
def captured(config: Config) -> Any:
    """Parameters, and a pass with everything in it."""
    params, tokens = tame(config), random_tokens(config, LENGTH)
    run = jax.jit(lambda params: forward(params, config, tokens, capture=available_sites(config)))
    return params, run(params)
