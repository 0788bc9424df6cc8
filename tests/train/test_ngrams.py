"""The yardsticks that count: n-gram losses."""

import math
from collections import Counter

import numpy as np
import pytest

from train.data.ngrams import ngram_losses


def test_ngram_losses_are_those_of_counting_by_hand():
    rng = np.random.default_rng(0)
    train, held_out = rng.integers(0, 4, 300), rng.integers(0, 5, 80)  # token 4 was never seen

    def p(history: tuple[int, ...], token: int) -> float:
        order = len(history)
        lower = p(history[1:], token) if order else 1 / 5
        follow = [
            int(train[i + order])
            for i in range(300 - order)
            if tuple(train[i : i + order]) == history
        ]
        kinds = len(set(follow))
        return (Counter(follow)[token] + kinds * lower) / (len(follow) + kinds) if follow else lower

    losses = ngram_losses(train, held_out, n_vocab=5)
    for order, name in enumerate(("unigram", "bigram", "trigram")):
        probabilities = [
            p(tuple(int(t) for t in held_out[max(0, i - order) : i]), int(held_out[i]))
            for i in range(1, 80)
        ]
        assert losses[name] == pytest.approx(-np.mean(np.log(probabilities)), rel=1e-12)


def test_ngram_probabilities_sum_to_one():
    train = np.array([0, 1, 2, 0, 1, 0, 2, 2, 1, 0])
    total = sum(
        math.exp(-ngram_losses(train, np.array([0, 1, t]), 3)["trigram"] * 2) for t in range(3)
    )
    first = math.exp(-ngram_losses(train, np.array([0, 1]), 3)["trigram"])
    assert total == pytest.approx(first, rel=1e-12)
