"""Yardsticks: what counting n-grams predicts on the same split, without any neural network."""

import numpy as np
from jaxtyping import Float, Int


def ngram_losses(
    train: Int[np.ndarray, " n"], held_out: Int[np.ndarray, " m"], n_vocab: int, orders: int = 3
) -> dict[str, float]:
    """Mean loss per held-out token in nats of the unigram, bigram and trigram model.

    Counted on the training tokens. Each order falls back on the one below by as much as new tokens
    followed the same history there: p(c|h) = (n(hc) + T(h)·p(c|h')) / (n(h) + T(h)), where T(h) is the
    number of different tokens seen after h and h' drops h's oldest token; below the unigram lies 1/n_vocab.

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
    train: Int[np.ndarray, " n"],
    held_out: Int[np.ndarray, " m"],
    n_vocab: int,
    order: int,
    lower: Float[np.ndarray, " m"],
) -> Float[np.ndarray, " m"]:
    """The probability of each held-out token given the order - 1 before it, smoothed by the order below."""
    if len(train) < order or len(held_out) < order:
        return lower
    grams, seen = np.unique(_grams(train, n_vocab, order), return_counts=True)
    histories, first = np.unique(grams // n_vocab, return_index=True)
    total = np.add.reduceat(seen, first)  # n(h): grams of one history lie side by side
    kinds = np.diff(np.append(first, len(grams)))  # T(h)
    asked = _grams(held_out, n_vocab, order)
    n_gram = _lookup(grams, seen, asked)
    n_history = _lookup(histories, total, asked // n_vocab)
    n_kinds = _lookup(histories, kinds, asked // n_vocab)
    known, smoothed = n_history > 0, lower.copy()
    ends = np.flatnonzero(known) + order - 1
    numerator = n_gram[known] + n_kinds[known] * lower[ends]
    smoothed[ends] = numerator / (n_history[known] + n_kinds[known])
    return smoothed


def _grams(tokens: Int[np.ndarray, " n"], n_vocab: int, order: int) -> Int[np.ndarray, " grams"]:
    """Each run of `order` tokens as one number, the newest token in the lowest place."""
    if n_vocab**order >= 2**63:
        raise ValueError(f"{order}-grams of a vocabulary of {n_vocab} do not fit 64-bit counting")
    length = max(len(tokens) - order + 1, 0)
    number = np.zeros(length, np.int64)
    for i in range(order):
        number = number * n_vocab + tokens[i : i + length]
    return number


def _lookup(
    keys: Int[np.ndarray, " k"], values: Int[np.ndarray, " k"], asked: Int[np.ndarray, " a"]
) -> Int[np.ndarray, " a"]:
    """values[keys == asked], 0 where there is none; the keys are sorted."""
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[place] == asked, values[place], 0)
