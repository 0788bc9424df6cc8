"""Brackets: is a sequence of them balanced?"""

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
    """Brackets, `?`, then `yes` if they are balanced and `no` if not; half are.

    Balanced: the height, `(` less `)` so far, never falls below 0 and ends on 0. Half of the others
    break only the first rule (they fall to -1), half only the second (they end on 2), so that
    counting brackets is not enough, nor is looking for a fall. Each kind is drawn uniformly.

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
    # 0, half of all: balanced; 1: ends on 2; 2: falls to -1
    kind = jax.random.choice(of_kind, jnp.array([0, 0, 1, 2]), (batch,))
    windows = jax.vmap(_window, in_axes=(0, 0, None))(
        jax.random.split(of_brackets, batch), kind, jnp.asarray(_chances(n), jnp.float32)
    )
    counted = jnp.arange(context) == context - 1
    return Batch(windows, jnp.broadcast_to(counted, (batch, context)))


def _window(
    key: Key[Array, ""], kind: Int[Array, ""], chances: Float[Array, "ends n height"]
) -> Int[Array, " window"]:
    n = chances.shape[1]
    chances = chances[jnp.minimum(kind, 1)]

    def step(height: Array, at: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        chance, uniform = at
        opens = uniform < chance[height]
        return height + jnp.where(opens, 1, -1), (height, opens)

    start = jnp.zeros((), jnp.int32)
    _, (heights, opens) = jax.lax.scan(step, start, (chances, jax.random.uniform(key, (n,))))
    # Where a sequence that ends on 2 leaves height 0 for good, `)` for `(` makes one that falls to
    # -1 and ends on 0; each such sequence comes from one of those, so it is drawn uniformly too.
    leaves = n - 1 - jnp.argmax(heights[::-1] == 0)
    opens = opens & ~((kind == 2) & (jnp.arange(n) == leaves))
    answer = jnp.where(kind == 0, YES, NO)
    return jnp.concatenate(
        [jnp.where(opens, OPEN, CLOSE), jnp.full((1,), ASK), answer[None]]
    ).astype(jnp.int32)


def _chances(n: int) -> Float[np.ndarray, "ends n height"]:
    """The chance of `(` at each place and height, uniform over sequences that end on 0, or on 2.

    It is the share of the ways to go on, never below 0, that begin with `(`. The ways are counted from
    the end; only their ratios matter, so that each row of them is scaled to stay finite.
    """
    chances = np.zeros((2, n, n + 2))
    for i, end in enumerate((0, 2)):
        ways = np.zeros(n + 3)  # by height, with a 0 for those too high to come back
        ways[end] = 1.0
        for place in reversed(range(n)):
            up, down = ways[1:], np.concatenate([[0.0], ways[:-2]])
            both = up + down
            chances[i, place] = np.divide(up, both, out=np.zeros_like(up), where=both > 0)
            ways = np.append(both, 0.0) / both.max()
    return chances


def _length(context: int) -> int:
    """The number of brackets; the question and the answer fill the window's other two places."""
    if context < 3 or context % 2 == 0:
        raise ValueError(
            f"context={context} does not fit brackets: it holds an even number of them and a `?`; "
            "choose an odd one of at least 3"
        )
    return context - 1


def _perfect(context: int) -> float:
    _length(context)
    return 0.0


def _yardsticks(context: int) -> dict[str, float]:
    """Chance; and the loss of one who only counts: 3 of 4 have as many `(` as `)`, 2 of those balanced."""
    _length(context)
    return {"chance": math.log(2), "counting only": (2 * math.log(3 / 2) + math.log(3)) / 4}
