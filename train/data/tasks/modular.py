"""Modular addition: learn a table from 30 % of its entries; the others test whether the model has found the rule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxformer.text.tokenizer import Words
from train.data.batches import Batch
from train.data.tasks.task import Task

MODULUS = 113
TRAINED = MODULUS**2 * 3 // 10  # 30 % of the pairs
ROWS = 512  # batch size of the validation


def modular_addition() -> Task:
    """Predict a + b mod 113 after `a b =`, with 30 % of the pairs for training and the rest for validation.

    A model first memorizes its pairs, and much later, with weight decay, learns the rule: it groks.

    Source: Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability", §3.

    >>> task = modular_addition()
    >>> batch = task.draw(jax.random.key(0), 1, 3)
    >>> a, b, _, answer = np.asarray(batch.windows[0])
    >>> bool((a + b) % 113 == answer)
    True
    """
    trained, others = _split()

    def draw(key: Key[Array, ""], batch: int, context: int) -> Batch:
        _check_context(context)
        if batch > TRAINED:
            raise ValueError(
                f"batch={batch} is more than the {TRAINED} pairs of a and b to train on; "
                f"choose at most {TRAINED}, which trains on all of them in each step"
            )
        # Without replacement: a batch of TRAINED pairs is the whole training set.
        return _batch(jax.random.permutation(key, jnp.asarray(trained))[:batch])

    def held_out(context: int) -> Batch:
        _check_context(context)
        n = -(-len(others) // ROWS)
        padded = np.pad(others, (0, n * ROWS - len(others)))
        windows, counted = _batch(jnp.asarray(padded).reshape(n, ROWS))
        real = jnp.arange(n * ROWS).reshape(n, ROWS, 1) < len(others)
        return Batch(windows, counted & real)

    return Task(
        tokenizer=Words([*map(str, range(MODULUS)), "="]),
        draw=draw,
        held_out=held_out,
        perfect=_perfect,
        yardsticks=_yardsticks,
    )


def _split() -> tuple[np.ndarray, np.ndarray]:
    """Return the training pairs and the other pairs, in random order; a pair (a, b) is the number a·113 + b."""
    pairs = np.random.default_rng(0).permutation(MODULUS**2).astype(np.int32)
    return pairs[:TRAINED], pairs[TRAINED:]


def _batch(pairs: Array) -> Batch:
    """Return a window `a b = answer` for each pair; only the answer counts."""
    a, b = pairs // MODULUS, pairs % MODULUS
    windows = jnp.stack([a, b, jnp.full_like(a, MODULUS), (a + b) % MODULUS], axis=-1)
    counted = jnp.array([False, False, True])
    return Batch(windows, jnp.broadcast_to(counted, (*pairs.shape, 3)))


def _check_context(context: int) -> None:
    if context != 3:
        raise ValueError(
            f"context={context} does not fit modular-addition, whose windows are `a b = answer`; "
            "choose context=3"
        )


def _perfect(context: int) -> float:
    _check_context(context)
    return 0.0


def _yardsticks(context: int) -> dict[str, float]:
    _check_context(context)
    return {"chance": math.log(MODULUS)}
