"""What a head attends to, as a number: functions of its pattern alone, for all heads at once."""

import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array, Float


def previous_token_score(pattern: Float[Array, "*l n t s"]) -> Float[Array, "*l n"]:
    """Mean attention from a token to the one before it.

    Raises:
        ValueError: a single token, which has none before it.
    """
    return _diagonal_mean(pattern, 1, first=1)


def induction_score(pattern: Float[Array, "*l n t s"], period: int) -> Float[Array, "*l n"]:
    """Mean attention, in a sequence that repeats, to the token after the previous occurrence.

    Args:
        pattern: of a sequence of different tokens that repeats itself every `period` of them.
        period: the distance between two occurrences of one token, at least 2.

    Raises:
        ValueError: a period below 2, or no repeat.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads", "prefix matching score".
    """
    if period < 2:
        raise ValueError(f"period={period} must be at least 2: a token before the one that repeats")
    return _diagonal_mean(pattern, period - 1, first=period)


def pattern_entropy(pattern: Float[Array, "*l n t s"]) -> Float[Array, "*l n"]:
    """How many tokens a head looks at: the mean over queries of -Σ_s p·ln p, in nats."""
    return -xlogy(pattern, pattern).sum(-1).mean(-1)


def _diagonal_mean(pattern: Array, back: int, first: int) -> Array:
    """Mean attention to the token `back` places earlier, over the queries from `first` on."""
    length = pattern.shape[-2]
    if length <= first:
        raise ValueError(f"a pattern of {length} tokens is too short; give at least {first + 1}")
    queries = jnp.arange(first, length)
    return pattern[..., queries, queries - back].mean(-1)
