"""Argument checks that several packages share."""

import operator
from typing import Any

import numpy as np


def check_vocabulary(tokens: Any, n_vocab: int) -> None:
    """Refuse concrete tokens that are outside the vocabulary.

    Raises:
        ValueError: naming the first such token and its position.
    """
    tokens = np.asarray(tokens)
    outside = np.argwhere((tokens < 0) | (tokens >= n_vocab))
    if len(outside):
        index = tuple(int(i) for i in outside[0])
        raise ValueError(
            f"token {tokens[index]} at position {index[-1]} is outside the vocabulary of {n_vocab} entries"
        )


def without_padding(tokens: Any) -> np.ndarray:
    """Return tokens without the -1s at the end, which `generate` returns after a stop.

    >>> without_padding([3, 1, -1, -1])
    array([3, 1])
    """
    tokens = np.asarray(tokens)
    real = np.flatnonzero(tokens != -1)
    return tokens[: real[-1] + 1 if len(real) else 0]


def positive_integer(name: str, value: Any, most: int | None = None) -> int:
    """Return a positive integer as a Python int.

    Raises:
        ValueError: a value that is not an integer, is below 1, or is above `most`.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or (most is not None and number > most):
        above = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name}={value!r} must be an integer of at least 1{above}")
    return number
