"""Argument checks that several packages share."""

import operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
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
    if tokens.ndim != 1:
        raise ValueError(f"tokens have shape {tokens.shape}; give one sequence of ids")
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


def as_array(name: str, values: Any) -> Any:
    """Return numbers as an array: JAX's as it is, others as NumPy's, unless they are traced.

    Raises:
        ValueError: rows of different lengths.
    """
    if isinstance(values, jax.Array):
        return values
    try:
        return np.asarray(values)
    except jax.errors.TracerArrayConversionError:
        return jnp.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is not an array: {error}") from None


def integers(name: str, values: Any) -> Any:
    """Return one sequence of integers as an array.

    Raises:
        ValueError: other axes, or another type.
    """
    array = as_array(name, values)
    if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; give one sequence of integers"
        )
    return array


def check_logits_at(logits_at: Any, length: int) -> Any:
    """Return positions within a sequence as an array.

    Raises:
        ValueError: not integers, or one that is out of range.
    """
    at = integers("logits_at", logits_at)
    concrete = [] if isinstance(at, jax.core.Tracer) else np.asarray(at).tolist()
    if outside := [position for position in concrete if not -length <= position < length]:
        raise ValueError(f"logits_at holds {outside[0]}, but there are {length} tokens")
    return at


def check_length(what: str, length: int, most: int | None) -> None:
    """Refuse more tokens than a position table has rows; None: no limit.

    Raises:
        ValueError: naming both numbers.
    """
    if most is not None and length > most:
        raise ValueError(f"{length} {what} are too many: the position table holds n_context={most}")


def check_segments(segments: Any, length: int, most: int | None, unread: int = 0) -> Any:
    """Return the segment of each token as an array. Concrete ones get small numbers, so that they fit into 32 bits.

    Args:
        length: the number of tokens.
        most: the most tokens of a document; None: no limit.
        unread: the number of tokens at the end that do not count for `most`.

    Raises:
        ValueError: not one integer for each token; a document that is too long.

    >>> check_segments([2**40, 2**40, 7, -1], 4, None)
    array([ 0,  0,  1, -3], dtype=int32)
    """
    segments = integers("segments", segments)
    if len(segments) != length:
        raise ValueError(f"{len(segments)} segments do not fit {length} tokens; give one for each")
    if isinstance(segments, jax.core.Tracer) or not length:
        return segments
    segments = np.asarray(segments)
    document = np.cumsum(np.append(0, segments[1:] != segments[:-1]))
    longest = np.bincount(document[: length - unread], minlength=1).max()
    check_length("tokens of a document", int(longest), most)
    return np.where(segments < 0, -1 - document, document).astype(np.int32)
