"""Workarounds for XLA on CPU (their gain: `python -m benchmarks.workarounds`); elsewhere, the plain operations."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxformer.model.stream import Values, einsum_f32


def recomputed(function: Callable[..., Values]) -> Callable[..., Values]:
    """On CPU: the backward pass keeps only the arguments of a norm or nonlinearity, and computes the rest again."""
    return (
        jax.checkpoint(function, prevent_cse=False) if jax.default_backend() == "cpu" else function
    )


def einsum_merged(formula: str, pair: str, left: Values, right: Values) -> Values:
    """Compute `einsum_f32`. On CPU: with a pair of neighbouring axes as one, which spares XLA copies."""
    if jax.default_backend() != "cpu":
        return einsum_f32(formula, left, right)
    shape = jax.eval_shape(partial(jnp.einsum, formula), left, right).shape
    operands = zip(formula.partition("->")[0].split(","), (left, right), strict=True)
    merged = [
        jax.lax.collapse(x, at, at + 2) if (at := a.find(pair)) >= 0 else x for a, x in operands
    ]
    return einsum_f32(formula.replace(pair, pair[0]), *merged).reshape(shape)


def masked(scores: Values, mask: jax.Array) -> Values:
    """Set scores to -inf where the mask is False. On CPU: by an addition, which XLA fuses into the product."""
    if jax.default_backend() != "cpu":
        return jnp.where(mask, scores, -jnp.inf)
    return scores + jnp.where(mask, 0.0, -jnp.inf).astype(scores.dtype)


def fence(array: jax.Array) -> jax.Array:
    """On CPU: compute an array before its readers. XLA would copy a cache at every token, and leave norms unrounded."""
    return jax.lax.optimization_barrier(array) if jax.default_backend() == "cpu" else array
