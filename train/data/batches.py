"""Batches as a pure function of (key, step): any step's batch can be drawn without those before it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer, Key


class Batch(NamedTuple):
    """Windows of context + 1 tokens, and which of their next tokens count in the loss."""

    windows: Any  # Int[Array, "*n b window"], of jax or of numpy
    counted: Any  # Bool[Array, "*n b context"]


def draw_starts(
    key: Key[Array, ""], step: Int[Array, ""], last: int, batch: int
) -> Int[Array, " b"]:
    """Where a step's windows begin, if windows can begin at `last` < 2**31 places."""
    return jax.random.randint(jax.random.fold_in(key, step), (batch,), 0, last)


def host_starts(
    key: Key[Array, ""], steps: Int[np.ndarray, " n"], last: int, batch: int
) -> Int[np.ndarray, "n b"]:
    """Where the windows of some steps begin, as int64 on the host; there can be any number of places.

    Below 2**31 places they are `draw_starts`'s own, so that a corpus in memory and the same corpus in a
    file give the same batches. Above, int32 cannot count the places, and x64 mode would have to be on
    before anything else was traced: each start is 64 random bits of the same key, modulo the places. That
    favours some places by one part in 2**64 / last, less than a millionth up to 2**44 tokens.

    >>> host_starts(jax.random.key(0), np.array([7, 8]), 10**10, batch=3).shape
    (2, 3)
    """
    if last < 2**31:
        return np.asarray(_near_starts(key, steps, last, batch), np.int64)
    high, low = np.moveaxis(np.asarray(_random_words(key, steps, batch), np.uint64), -1, 0)
    return ((high << np.uint64(32) | low) % np.uint64(last)).astype(np.int64)


def shuffled_starts(
    key: Key[Array, ""], steps: Int[np.ndarray, " n"], n_tokens: int, batch: int, context: int
) -> Int[np.ndarray, "n b"]:
    """Where the windows of some steps begin, if each epoch takes them side by side, in a new order.

    No target comes twice in an epoch. Each epoch's first window begins at another of the first `context`
    tokens, so that the cuts differ. An order takes 8 bytes per window while it is made.

    Raises:
        ValueError: not even one window fits behind every beginning.

    >>> starts = shuffled_starts(jax.random.key(0), np.arange(3), 101, batch=3, context=10)
    >>> sorted(int(s) // 10 for s in starts.flat)
    [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    places = (n_tokens - 1) // context - 1
    if places < 1:
        raise ValueError(
            f"{n_tokens} tokens are too few for windows of {context + 1} in a new order each epoch; "
            f"give {2 * context + 1} or more, or --order random"
        )
    numbers = steps.astype(np.int64)[:, None] * batch + np.arange(batch)
    epochs, turns = np.divmod(numbers, places)
    starts = np.empty_like(numbers)
    for epoch in np.unique(epochs):
        rng = np.random.default_rng([*np.asarray(jax.random.key_data(key)), epoch])
        order, offset = rng.permutation(places), rng.integers(context)
        here = epochs == epoch
        starts[here] = order[turns[here]] * context + offset
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
    tokens: Integer[np.ndarray, " corpus"], starts: Int[np.ndarray, "*n b"], context: int
) -> Int[np.ndarray, "*n b window"]:
    """The windows of context + 1 tokens that begin there; of a mapped file only their pages are read.

    Raises:
        ValueError: a window would leave the corpus.

    >>> draw_windows(np.arange(100), np.array([3, 90]), context=4)[1]
    array([90, 91, 92, 93, 94], dtype=int32)
    """
    last = len(tokens) - context - 1
    if starts.size and (starts.min() < 0 or starts.max() > last):
        raise ValueError(
            f"windows of {context + 1} of {len(tokens)} tokens begin at 0 to {last}; "
            f"the starts go from {starts.min()} to {starts.max()}"
        )
    windows = np.lib.stride_tricks.sliding_window_view(tokens, context + 1)  # a view, no copy
    return windows[starts].astype(np.int32)


def held_out_starts(n_tokens: int, context: int, most: int = 2**20) -> Int[np.ndarray, " n"]:
    """Where the windows begin on which the last 10 % of a corpus is validated, in order.

    All whole windows, one after another as in `cover`, if their targets are at most `most`; otherwise as
    many as that, at least one, evenly spread. No token is a target twice.

    Raises:
        ValueError: the last 10 % is shorter than a window.

    >>> held_out_starts(1000, context=10, most=30)
    array([900, 930, 960])
    """
    begin = n_tokens * 9 // 10
    there = (n_tokens - begin - 1) // context
    if there < 1:
        raise ValueError(
            f"the last 10 % are {n_tokens - begin} of {n_tokens} tokens; a context of {context} needs at "
            f"least {context + 1}. Give more text or a smaller --context"
        )
    n = min(there, max(1, most // context))
    return begin + np.arange(n, dtype=np.int64) * there // n * context


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
