"""What a toy task is: a source of batches, and how well they can be predicted at best."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Key

from jaxformer.text.tokenizer import Tokenizer
from train.data.batches import Batch


class Task(NamedTuple):
    """A source of batches with a known answer; a context that it cannot use is a ValueError."""

    tokenizer: Tokenizer
    draw: Callable[[Key[Array, ""], int, int], Batch]
    """(key, batch, context) -> one batch to train on, `[b window]`; pure, and traceable"""
    held_out: Callable[[int], Batch]
    """context -> the same batches every time, `[n b window]`; what fills up the last is not counted"""
    perfect: Callable[[int], float]
    """context -> nats per counted token of a perfect model, in expectation over windows; exact"""
    yardsticks: Callable[[int], dict[str, float]]
    """context -> nats per counted token of those who know less, by name; exact"""


def fixed_batches(
    draw: Callable[[Key[Array, ""], int, int], Batch], context: int, *, n: int, batch: int
) -> Batch:
    """Batches for the validation of a task that never runs out of windows."""
    keys = jax.random.split(jax.random.key(2**31 - 1), n)  # a seed of its own: runs count from 0
    return jax.jit(jax.vmap(lambda key: draw(key, batch, context)))(keys)
