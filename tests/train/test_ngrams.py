"""Losses of n-gram models."""

from collections import Counter

import numpy as np
import pytest

from train.data.ngrams import ngram_losses


def test_ngram_losses_are_those_of_counting_by_hand():
    rng = np.random.default_rng(0)
    train, held_out = (
        rng.integers(0, 4, 300),
        rng.integers(0, 5, 80),
    )  # token 4 is not in the training data

    def p(history: tuple[int, ...], token: int) -> float:
        order = len(history)
        lower = p(history[1:], token) if order else 1 / 5
        starts = [i for i in range(300 - order) if tuple(train[i : i + order]) == history]
        follow = train[np.array(starts, int) + order].tolist()
        kinds = len(set(follow))
        return (Counter(follow)[token] + kinds * lower) / (len(follow) + kinds) if follow else lower

    losses = ngram_losses(train, held_out, n_vocab=5)
    for order, name in enumerate(("unigram", "bigram", "trigram")):
        histories = [tuple(held_out[max(0, i - order) : i].tolist()) for i in range(1, 80)]
        probabilities = [p(*each) for each in zip(histories, held_out[1:].tolist(), strict=True)]
        assert losses[name] == pytest.approx(-np.mean(np.log(probabilities)), rel=1e-12)
