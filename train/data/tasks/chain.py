"""Words from a Markov chain whose state they give away, so that its entropy is computed, not estimated."""

from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from train.data.batches import Batch

State = TypeVar("State", bound=Hashable)


class Chain(NamedTuple):
    """States and their choices as arrays: row by state, column by choice; state 0 is the start."""

    vocabulary: tuple[str, ...]
    chance: Float[np.ndarray, "state choice"]
    """0 in the columns that a state has no choice for"""
    word: Int[np.ndarray, "state choice"]
    after: Int[np.ndarray, "state choice"]


def tabulate(start: State, choices: Callable[[State], dict[str, tuple[float, State]]]) -> Chain:
    """Number every state that can be reached, in order of first sight, and every word, sorted.

    >>> coin = tabulate("toss", lambda state: {"heads": (0.5, state), "tails": (0.5, state)})
    >>> coin.vocabulary, coin.chance
    (('heads', 'tails'), array([[0.5, 0.5]]))
    """
    numbers, queue, rows = {start: 0}, [start], []
    for state in queue:  # which grows meanwhile
        rows.append(choices(state))
        for _, after in rows[-1].values():
            if after not in numbers:
                numbers[after] = len(queue)
                queue.append(after)
    vocabulary = tuple(sorted({word for row in rows for word in row}))
    ids = {word: i for i, word in enumerate(vocabulary)}
    shape = (len(rows), max(map(len, rows)))
    chain = Chain(vocabulary, np.zeros(shape), np.zeros(shape, np.int32), np.zeros(shape, np.int32))
    for number, row in enumerate(rows):
        for choice, (word, (chance, after)) in enumerate(row.items()):
            chain.chance[number, choice] = chance
            chain.word[number, choice] = ids[word]
            chain.after[number, choice] = numbers[after]
    return chain


def sample(chain: Chain, key: Key[Array, ""], batch: int, context: int) -> Batch:
    """Windows that begin at the start; every target counts."""
    _check_context(context)
    with np.errstate(divide="ignore"):  # ln 0: never drawn
        logits = jnp.asarray(np.log(chain.chance), jnp.float32)
    word, after = jnp.asarray(chain.word), jnp.asarray(chain.after)

    def step(state: Int[Array, " b"], key: Key[Array, ""]) -> tuple[Array, Array]:
        choice = jax.random.categorical(key, logits[state])
        return after[state, choice], word[state, choice]

    start = jnp.zeros(batch, jnp.int32)
    windows = jax.lax.scan(step, start, jax.random.split(key, context + 1))[1].T
    return Batch(windows, jnp.ones((batch, context), bool))


def entropy(chain: Chain, context: int) -> float:
    """Mean of H(word | words before) over the targets of a window, in nats.

    The words before tell the state s, so that it is the mean over targets of Σ_s P(s)·H(word | s).
    """
    _check_context(context)
    surprise = -np.log(chain.chance, where=chain.chance > 0, out=np.zeros_like(chain.chance))
    per_state = (chain.chance * surprise).sum(axis=1)
    return float(_advance(chain, visits(chain, context)) @ per_state)


def ngram_entropies(chain: Chain, context: int) -> dict[str, float]:
    """What is left to know of a target without the words before it, and with only the last of them."""
    at = visits(chain, context)
    n_vocab = len(chain.vocabulary)
    followed = chain.chance[chain.after]  # [state choice choice]: this word, then that one
    pairs = (at[:, None] * chain.chance)[:, :, None] * followed
    cells = chain.word[:, :, None] * n_vocab + chain.word[chain.after]
    joint = np.bincount(cells.ravel(), pairs.ravel(), n_vocab**2).reshape(n_vocab, n_vocab)
    unigram, before = _entropy(joint.sum(axis=0)), _entropy(joint.sum(axis=1))
    return {
        "chance": float(np.log(n_vocab)),
        "unigram": unigram,
        "bigram": _entropy(joint.ravel()) - before,
    }


def visits(chain: Chain, context: int) -> Float[np.ndarray, " state"]:
    """How the states before a window's words are distributed, all words but the last taken together."""
    _check_context(context)
    at = np.zeros(len(chain.chance))
    at[0] = 1.0
    total = np.zeros_like(at)
    for _ in range(context):
        total += at
        at = _advance(chain, at)
    return total / context


def _advance(chain: Chain, at: Float[np.ndarray, " state"]) -> Float[np.ndarray, " state"]:
    """The distribution of the state one word later."""
    return np.bincount(chain.after.ravel(), (at[:, None] * chain.chance).ravel(), len(at))


def _entropy(chances: Float[np.ndarray, " n"]) -> float:
    positive = chances[chances > 0]
    return float(-(positive * np.log(positive)).sum())


def _check_context(context: int) -> None:
    if context < 1:
        raise ValueError(f"context={context} leaves no word to predict; choose one of at least 1")
