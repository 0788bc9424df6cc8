"""Brackets: decide whether a sequence is balanced."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxformer.text.tokenizer import Words
from train.data.batches import Batch
from train.data.tasks.task import Task, fixed_batches

OPEN, CLOSE, ASK, YES, NO = range(5)


def brackets() -> Task:
    """Brackets, then `?`, then `yes` if they are balanced or `no` if not; half of the sequences are balanced.

    In a balanced sequence the height, `(` minus `)` so far, never falls below 0 and ends at 0. Half of the other
    sequences break only the first rule (they fall to -1), half only the second (they end at 2). So it is not enough to
    count brackets or to find a fall below 0. Each kind is drawn uniformly.

    >>> task = brackets()
    >>> windows = task.held_out(5).windows.reshape(-1, 6)
    >>> sorted({task.tokenizer.decode(window) for window in np.asarray(windows)})[:3]
    ['( ( ( ) ? no', '( ( ) ( ? no', '( ( ) ) ? yes']
    """
    return Task(
        tokenizer=Words(["(", ")", "?", "yes", "no"]),
        draw=_draw,
        held_out=lambda context: fixed_batches(_draw, context, n=8, batch=256),
        perfect=_perfect,
        yardsticks=_yardsticks,
    )


def _draw(key: Key[Array, ""], batch: int, context: int) -> Batch:
    n = _length(context)
    of_kind, of_brackets = jax.random.split(key)
    # 0 (half of all): balanced; 1: ends at 2; 2: falls to -1
    kind = jax.random.choice(of_kind, jnp.array([0, 0, 1, 2]), (batch,))
    windows = jax.vmap(_window, in_axes=(0, 0, None))(
        jax.random.split(of_brackets, batch), kind, jnp.asarray(_chances(n), jnp.float32)
    )
    counted = jnp.arange(context) == context - 1
    return Batch(windows, jnp.broadcast_to(counted, (batch, context)))


def _window(
    key: Key[Array, ""], kind: Int[Array, ""], chances: Float[Array, "ends place height"]
) -> Int[Array, " window"]:
    n = chances.shape[1]
    chances = chances[jnp.minimum(kind, 1)]

    def step(height: Array, at: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        chance, uniform = at
        opens = uniform < chance[height]
        return height + jnp.where(opens, 1, -1), (height, opens)

    start = jnp.zeros((), jnp.int32)
    _, (heights, opens) = jax.lax.scan(step, start, (chances, jax.random.uniform(key, (n,))))
    # Take a sequence that ends at 2, at the `(` after which it never returns to height 0: with `)` there, it falls to
    # -1 and ends at 0. This maps the two kinds one to one, so the result is uniform too.
    leaves = n - 1 - jnp.argmax(heights[::-1] == 0)
    opens = opens & ~((kind == 2) & (jnp.arange(n) == leaves))
    answer = jnp.where(kind == 0, YES, NO)
    return jnp.concatenate(
        [jnp.where(opens, OPEN, CLOSE), jnp.full((1,), ASK), answer[None]]
    ).astype(jnp.int32)


def _chances(n: int) -> Float[np.ndarray, "ends place height"]:
    """Return the probability of `(` at each place and height, uniform over sequences that end at 0, or at 2.

    It is the fraction of the continuations that never fall below 0 which begin with `(`. Continuations are counted from
    the end. Only their ratios matter, so each row is scaled to stay finite.
    """
    chances = np.zeros((2, n, n + 2))
    for i, end in enumerate((0, 2)):
        ways = np.zeros(n + 3)  # by height; the last entry is 0, too high to return
        ways[end] = 1.0
        for place in reversed(range(n)):
            up, down = ways[1:], np.concatenate([[0.0], ways[:-2]])
            both = up + down
            chances[i, place] = np.divide(up, both, out=np.zeros_like(up), where=both > 0)
            ways = np.append(both, 0.0) / both.max()
    return chances


def _length(context: int) -> int:
    """Return the number of brackets: all of the window except the question and the answer."""
    if context < 3 or context % 2 == 0:
        raise ValueError(
            f"context={context} does not fit brackets, which needs an even number of brackets and a `?`; "
            "choose an odd context of at least 3"
        )
    return context - 1


def _perfect(context: int) -> float:
    _length(context)
    return 0.0


def _yardsticks(context: int) -> dict[str, float]:
    """Chance, and the loss of only counting: 3 of 4 sequences have as many `(` as `)`, and 2 of these are balanced."""
    _length(context)
    return {"chance": math.log(2), "counting only": (2 * math.log(3 / 2) + math.log(3)) / 4}
