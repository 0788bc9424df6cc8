"""Two texts of one length, and a metric of both: what sweeps are tested on."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import Config
from tests.helpers.models import random_tokens

LENGTH = 5
close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def texts(config: Config, *batch: int) -> tuple[jax.Array, jax.Array]:
    """Two runs that differ in a token in the middle, and one at the end."""
    corrupted = random_tokens(config, LENGTH * int(np.prod(batch))).reshape(*batch, LENGTH)
    clean = corrupted.at[..., 1].add(1).at[..., -1].add(2) % config.n_vocab
    return clean.astype(jnp.int32), corrupted


def metric(logits: jax.Array) -> jax.Array:
    """Not linear, and of all positions."""
    return jnp.sin(logits).sum() + logits[..., -1, 2].mean() - logits[..., -1, 1].mean()


def enough(refused: ValueError) -> int:
    """The memory that a refused sweep asks for: the largest number in its message."""
    return max(map(int, re.findall(r"\d+", str(refused))))
