"""Batches as a pure function of (key, step): any step's batch can be drawn without those before it."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key


def draw_batch(
    key: Key[Array, ""],
    step: Int[Array, ""],
    tokens: Int[Array, " corpus"],
    batch: int,
    context: int,
) -> Int[Array, "b window"]:
    """Windows of context + 1 tokens, which begin anywhere in the corpus with equal chance.

    >>> draw_batch(jax.random.key(0), jnp.array(7), jnp.arange(100), batch=2, context=4).shape
    (2, 5)
    """
    last = len(tokens) - context  # the number of places where a window can begin
    starts = jax.random.randint(jax.random.fold_in(key, step), (batch, 1), 0, last)
    return tokens[starts + jnp.arange(context + 1)]


def cover(
    tokens: Int[np.ndarray, " corpus"], batch: int, context: int
) -> tuple[Int[np.ndarray, "n b window"], Bool[np.ndarray, "n b context"]]:
    """All of a corpus in order: batches of windows in which each token but the first is a target once.

    The mask marks the real targets; the last windows are filled up with the corpus's first token.
    """
    targets = len(tokens) - 1
    rows = -(-targets // context)
    rows = -(-rows // batch) * batch
    reach = np.arange(rows)[:, None] * context + np.arange(context + 1)
    windows = tokens[np.where(reach < len(tokens), reach, 0)]
    real = reach[:, 1:] < len(tokens)
    return windows.reshape(-1, batch, context + 1), real.reshape(-1, batch, context)
