"""Losses of n-gram models, to compare a trained model with."""

import numpy as np
from jaxtyping import Float, Int


def ngram_losses(
    train: Int[np.ndarray, " train"],
    held_out: Int[np.ndarray, " held_out"],
    n_vocab: int,
    orders: int = 3,
) -> dict[str, float]:
    """Return the mean loss per held-out token, in nats, of the unigram, bigram and trigram model.

    The models count n-grams of the training tokens. Each is interpolated with the next lower order:
    p(c|h) = (n(hc) + T(h)·p(c|h')) / (n(h) + T(h)), where T(h) is the number of different tokens seen after h and
    h' is h without its oldest token. Below the unigram is the uniform distribution.

    Source: Witten & Bell 1991, "The zero-frequency problem", method C.

    >>> losses = ngram_losses(np.arange(100) % 2, np.arange(50) % 2, n_vocab=2)
    >>> losses["bigram"] < losses["unigram"]
    True
    """
    names = ["unigram", "bigram", "trigram", *(f"{n}-gram" for n in range(4, orders + 1))]
    probability = np.full(len(held_out), 1 / n_vocab)
    losses = {}
    for order, name in enumerate(names[:orders], start=1):
        probability = _witten_bell(train, held_out, n_vocab, order, probability)
        losses[name] = float(-np.log(probability[1:]).mean())
    return losses


def _witten_bell(
    train: Int[np.ndarray, " train"],
    held_out: Int[np.ndarray, " held_out"],
    n_vocab: int,
    order: int,
    lower: Float[np.ndarray, " held_out"],
) -> Float[np.ndarray, " held_out"]:
    """Return the probability of each held-out token given `order - 1` earlier tokens, smoothed by the lower order."""
    if len(train) < order or len(held_out) < order:
        return lower
    grams, seen = np.unique(_grams(train, n_vocab, order), return_counts=True)
    histories, first = np.unique(grams // n_vocab, return_index=True)
    total = np.add.reduceat(seen, first)  # n(h): the grams of a history are adjacent
    kinds = np.diff(np.append(first, len(grams)))  # T(h)
    wanted = _grams(held_out, n_vocab, order)
    n_gram = _lookup(grams, seen, wanted)
    n_history = _lookup(histories, total, wanted // n_vocab)
    n_kinds = _lookup(histories, kinds, wanted // n_vocab)
    known, smoothed = n_history > 0, lower.copy()
    ends = np.flatnonzero(known) + order - 1
    numerator = n_gram[known] + n_kinds[known] * lower[ends]
    smoothed[ends] = numerator / (n_history[known] + n_kinds[known])
    return smoothed


def _grams(
    tokens: Int[np.ndarray, " tokens"], n_vocab: int, order: int
) -> Int[np.ndarray, " grams"]:
    """Return each run of `order` tokens as one number, with the newest token as the lowest digit."""
    if n_vocab**order >= 2**63:
        raise ValueError(
            f"{order}-grams of a vocabulary of {n_vocab} do not fit into 64 bits; choose a lower order"
        )
    length = max(len(tokens) - order + 1, 0)
    number = np.zeros(length, np.int64)
    for i in range(order):
        number = number * n_vocab + tokens[i : i + length]
    return number


def _lookup(
    keys: Int[np.ndarray, " keys"],
    values: Int[np.ndarray, " keys"],
    wanted: Int[np.ndarray, " wanted"],
) -> Int[np.ndarray, " wanted"]:
    """Return the value of each wanted key, or 0 if it is not among the sorted keys."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
