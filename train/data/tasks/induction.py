"""Induction: a random sequence that repeats, so what followed a token before follows it again."""

import math
import string

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxformer.text.tokenizer import Characters
from train.data.batches import Batch
from train.data.tasks.task import Task, fixed_batches

ALPHABET = string.ascii_letters + string.digits


def induction() -> Task:
    """Predict the repeats of a random sequence, from the second token of the first repeat on.

    An induction head solves it: it attends to the token after the previous occurrence of the current one. One attention
    layer is not enough, because a key has the preceding token only after an earlier layer has put it there.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads".

    >>> task = induction()
    >>> batch = task.draw(jax.random.key(0), 1, 19)
    >>> text = task.tokenizer.decode(np.asarray(batch.windows[0]))
    >>> text.find(text[0], 1) in periods(19)
    True
    """
    return Task(
        tokenizer=Characters(ALPHABET),
        draw=_draw,
        held_out=lambda context: fixed_batches(_draw, context, n=8, batch=64),
        perfect=_perfect,
        yardsticks=_yardsticks,
    )


def periods(context: int) -> range:
    """Return the possible lengths of the repeated sequence: a quarter to half of a window, with equal probability.

    They differ between windows; otherwise a model with positions could copy from a fixed offset and ignore the tokens.
    """
    least, most = 7, 2 * len(ALPHABET)
    if not least <= context <= most:
        raise ValueError(
            f"context={context} does not fit induction, whose sequences of up to half the context have different "
            f"characters, out of {len(ALPHABET)}; choose a context from {least} to {most}"
        )
    half = (context + 1) // 2
    return range((half + 1) // 2, half + 1)


def _draw(key: Key[Array, ""], batch: int, context: int) -> Batch:
    lengths = periods(context)
    of_period, of_tokens = jax.random.split(key)
    period = jax.random.randint(of_period, (batch, 1), lengths.start, lengths.stop)
    # The tokens of a sequence differ, so the current token determines the next one.
    ids = jnp.broadcast_to(jnp.arange(len(ALPHABET), dtype=jnp.int32), (batch, len(ALPHABET)))
    sequences = jax.random.permutation(of_tokens, ids, axis=1, independent=True)
    place = jnp.arange(context + 1)
    windows = jnp.take_along_axis(sequences, place % period, axis=1)
    # The first token of the first repeat cannot be predicted: nothing shows the period yet.
    return Batch(windows, place[1:] > period)


def _perfect(context: int) -> float:
    periods(context)
    return 0.0


def _yardsticks(context: int) -> dict[str, float]:
    """Chance, and the loss of a predictor that knows the tokens of the sequence but not their order."""
    lengths = np.array(periods(context))
    counted = context - lengths
    return {
        "chance": math.log(len(ALPHABET)),
        "tokens without their order": float((counted * np.log(lengths)).sum() / counted.sum()),
    }
