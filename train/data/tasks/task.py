"""The interface of a toy task: a source of batches, and the best possible loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Key

from jaxformer.text.tokenizer import Tokenizer
from train.data.batches import Batch


class Task(NamedTuple):
    """A source of batches whose best possible loss is known; its functions raise ValueError for a wrong context."""

    tokenizer: Tokenizer
    draw: Callable[[Key[Array, ""], int, int], Batch]
    """(key, batch, context) -> one training batch, `[b window]`; pure and traceable"""
    held_out: Callable[[int], Batch]
    """context -> fixed validation batches, `[batches b window]`; padding rows of the last do not count"""
    perfect: Callable[[int], float]
    """context -> exact expected loss of a perfect model, in nats per counted token"""
    yardsticks: Callable[[int], dict[str, float]]
    """context -> exact losses of simple predictors, in nats per counted token, by name"""


def fixed_batches(
    draw: Callable[[Key[Array, ""], int, int], Batch], context: int, *, n: int, batch: int
) -> Batch:
    """Draw validation batches for a task with unlimited windows."""
    keys = jax.random.split(jax.random.key(2**31 - 1), n)  # above the seeds of runs
    return jax.jit(jax.vmap(lambda key: draw(key, batch, context)))(keys)
