"""Words from a Markov chain whose state follows from the words, so that its entropy can be computed exactly."""

from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from train.data.batches import Batch

State = TypeVar("State", bound=Hashable)


class Chain(NamedTuple):
    """A Markov chain as arrays with a row per state and a column per choice; state 0 is the start."""

    vocabulary: tuple[str, ...]
    chance: Float[np.ndarray, "state choice"]
    """probability of each choice; 0 in unused columns"""
    word: Int[np.ndarray, "state choice"]
    after: Int[np.ndarray, "state choice"]


def tabulate(start: State, choices: Callable[[State], dict[str, tuple[float, State]]]) -> Chain:
    """Build the chain of all states that can be reached from the start.

    States are numbered as they are found, words alphabetically.

    >>> coin = tabulate("toss", lambda state: {"heads": (0.5, state), "tails": (0.5, state)})
    >>> coin.vocabulary, coin.chance
    (('heads', 'tails'), array([[0.5, 0.5]]))
    """
    numbers, queue, rows = {start: 0}, [start], []
    for state in queue:  # grows during the loop
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
    """Draw windows that begin at the start state; every target counts."""
    _check_context(context)
    with np.errstate(divide="ignore"):  # log 0 = -inf is never drawn
        logits = jnp.asarray(np.log(chain.chance), jnp.float32)
    word, after = jnp.asarray(chain.word), jnp.asarray(chain.after)

    def step(state: Int[Array, " b"], key: Key[Array, ""]) -> tuple[Array, Array]:
        choice = jax.random.categorical(key, logits[state])
        return after[state, choice], word[state, choice]

    start = jnp.zeros(batch, jnp.int32)
    windows = jax.lax.scan(step, start, jax.random.split(key, context + 1))[1].T
    return Batch(windows, jnp.ones((batch, context), bool))


def entropy(chain: Chain, context: int) -> float:
    """Return the mean of H(word | earlier words) over the targets of a window, in nats.

    The earlier words determine the state s, so this is the mean over targets of Σ_s P(s)·H(word | s).
    """
    _check_context(context)
    surprise = -np.log(chain.chance, where=chain.chance > 0, out=np.zeros_like(chain.chance))
    per_state = (chain.chance * surprise).sum(axis=1)
    return float(_advance(chain, visits(chain, context)) @ per_state)


def ngram_entropies(chain: Chain, context: int) -> dict[str, float]:
    """Return the entropy of a target without any earlier word (unigram), and given only the last one (bigram)."""
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
    """Return the distribution of the state before a word, over all words of a window but the last."""
    _check_context(context)
    at = np.zeros(len(chain.chance))
    at[0] = 1.0
    total = np.zeros_like(at)
    for _ in range(context):
        total += at
        at = _advance(chain, at)
    return total / context


def _advance(chain: Chain, at: Float[np.ndarray, " state"]) -> Float[np.ndarray, " state"]:
    """Return the distribution of the state one word later."""
    return np.bincount(chain.after.ravel(), (at[:, None] * chain.chance).ravel(), len(at))


def _entropy(chances: Float[np.ndarray, " outcomes"]) -> float:
    positive = chances[chances > 0]
    return float(-(positive * np.log(positive)).sum())


def _check_context(context: int) -> None:
    if context < 1:
        raise ValueError(f"context={context} leaves no word to predict; choose at least 1")
