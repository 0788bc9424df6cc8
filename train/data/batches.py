"""Batches as a pure function of (key, step), so the batch of any step can be drawn without the earlier ones."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer, Key


class Batch(NamedTuple):
    """Windows of context + 1 tokens, and which of their targets count in the loss."""

    windows: Any  # Int[Array, "*steps b window"], of jax or numpy
    counted: Any  # Bool[Array, "*steps b context"]


def draw_starts(
    key: Key[Array, ""], step: Int[Array, ""], last: int, batch: int
) -> Int[Array, " b"]:
    """Return random starts of the windows of a step, from 0 to last - 1, where last < 2**31."""
    return jax.random.randint(jax.random.fold_in(key, step), (batch,), 0, last)


def host_starts(
    key: Key[Array, ""], steps: Int[np.ndarray, " steps"], last: int, batch: int
) -> Int[np.ndarray, "steps b"]:
    """Return random starts of the windows of some steps, as int64 on the host, from 0 to last - 1.

    For last < 2**31 they equal `draw_starts`, so a corpus gives the same batches from memory and from a file. Above,
    int32 is too small, and 64-bit mode would have to be on before anything is traced. So each start is 64 random bits
    of the same key, modulo last. This favours some starts by one part in 2**64 / last, less than a millionth up to
    2**44 tokens.

    >>> host_starts(jax.random.key(0), np.array([7, 8]), 10**10, batch=3).shape
    (2, 3)
    """
    if last < 2**31:
        return np.asarray(_near_starts(key, steps, last, batch), np.int64)
    high, low = np.moveaxis(np.asarray(_random_words(key, steps, batch), np.uint64), -1, 0)
    return ((high << np.uint64(32) | low) % np.uint64(last)).astype(np.int64)


def shuffled_starts(
    key: Key[Array, ""], steps: Int[np.ndarray, " steps"], n_tokens: int, batch: int, context: int
) -> Int[np.ndarray, "steps b"]:
    """Return starts of non-overlapping windows for some steps, in a new random order each epoch.

    No target occurs twice in an epoch. The windows of an epoch are shifted by a random offset below `context`, so they
    differ between epochs. Making an order takes 8 bytes per window.

    Raises:
        ValueError: there are too few tokens for one window at every offset.

    >>> starts = shuffled_starts(jax.random.key(0), np.arange(3), 101, batch=3, context=10)
    >>> sorted(int(s) // 10 for s in starts.flat)
    [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    n_windows = (n_tokens - 1) // context - 1
    if n_windows < 1:
        raise ValueError(
            f"{n_tokens} tokens are too few for shuffled windows of {context + 1}; "
            f"give at least {2 * context + 1}, or --order random"
        )
    numbers = steps.astype(np.int64)[:, None] * batch + np.arange(batch)
    epochs, indices = np.divmod(numbers, n_windows)
    starts = np.empty_like(numbers)
    for epoch in np.unique(epochs):
        rng = np.random.default_rng([*np.asarray(jax.random.key_data(key)), epoch])
        order, offset = rng.permutation(n_windows), rng.integers(context)
        here = epochs == epoch
        starts[here] = order[indices[here]] * context + offset
    return starts


@partial(jax.jit, static_argnames=("last", "batch"))
def _near_starts(key: Array, steps: Array, last: int, batch: int) -> Array:
    return jax.vmap(lambda step: draw_starts(key, step, last, batch))(steps)


@partial(jax.jit, static_argnames="batch")
def _random_words(key: Array, steps: Array, batch: int) -> Array:
    return jax.vmap(
        lambda step: jax.random.bits(jax.random.fold_in(key, step), (batch, 2), jnp.uint32)
    )(steps)


def draw_windows(
    tokens: Integer[np.ndarray, " corpus"], starts: Int[np.ndarray, "*steps b"], context: int
) -> Int[np.ndarray, "*steps b window"]:
    """Return the windows of context + 1 tokens at these starts; reads only their pages of a memory-mapped file.

    Raises:
        ValueError: a window would reach beyond the corpus.

    >>> draw_windows(np.arange(100), np.array([3, 90]), context=4)[1]
    array([90, 91, 92, 93, 94], dtype=int32)
    """
    last = len(tokens) - context - 1
    if starts.size and (starts.min() < 0 or starts.max() > last):
        raise ValueError(
            f"windows of {context + 1} in {len(tokens)} tokens must start between 0 and {last}; "
            f"the starts are between {starts.min()} and {starts.max()}"
        )
    windows = np.lib.stride_tricks.sliding_window_view(tokens, context + 1)  # a view, not a copy
    return windows[starts].astype(np.int32)


def held_out_starts(n_tokens: int, context: int, most: int = 2**20) -> Int[np.ndarray, " windows"]:
    """Return the starts of the validation windows in the last 10 % of a corpus, in order.

    The windows are consecutive if all of them together have at most `most` targets. Otherwise they are evenly spaced,
    as many as have at most `most` targets (but at least one window). No token is a target twice.

    Raises:
        ValueError: the last 10 % is shorter than a window.

    >>> held_out_starts(1000, context=10, most=30)
    array([900, 930, 960])
    """
    begin = n_tokens * 9 // 10
    n_windows = (n_tokens - begin - 1) // context
    if n_windows < 1:
        raise ValueError(
            f"the last 10 % are {n_tokens - begin} of {n_tokens} tokens; context={context} needs at "
            f"least {context + 1}. Give more text or a smaller --context"
        )
    n = min(n_windows, max(1, most // context))
    return begin + np.arange(n, dtype=np.int64) * n_windows // n * context


def cover(
    tokens: Int[np.ndarray, " corpus"], batch: int, context: int
) -> tuple[Int[np.ndarray, "batches b window"], Bool[np.ndarray, "batches b context"]]:
    """Return batches of consecutive windows in which each token of a corpus but the first is a target once.

    The mask marks the real targets; the last windows are padded with the first token of the corpus.
    """
    targets = len(tokens) - 1
    rows = -(-targets // context)
    rows = -(-rows // batch) * batch
    reach = np.arange(rows)[:, None] * context + np.arange(context + 1)
    windows = tokens[np.where(reach < len(tokens), reach, 0)]
    real = reach[:, 1:] < len(tokens)
    return windows.reshape(-1, batch, context + 1), real.reshape(-1, batch, context)
