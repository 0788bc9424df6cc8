"""Scores of what heads do, for all heads at once: what they attend to, and whether they copy.

Functions of a pattern take the site `pattern` as `forward` captures it; `head_scores` runs the model itself.
"""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.config import Config
from jaxformer.interp.factored import quotient
from jaxformer.interp.match import (
    TARGETS,
    duplicate_token_target,
    head_scores,
    induction_target,
    match_score,
    previous_token_target,
)
from jaxformer.interp.qk_ov import ov_circuit, unembedding
from jaxformer.model.params import Params
from jaxformer.model.stream import upcast

__all__ = [
    "TARGETS",
    "copying_score",
    "duplicate_token_score",
    "duplicate_token_target",
    "head_scores",
    "induction_score",
    "induction_target",
    "match_score",
    "pattern_entropy",
    "previous_token_score",
    "previous_token_target",
]


def previous_token_score(pattern: Float[Array, "*l n t s"]) -> Float[Array, "*l n"]:
    """Return the mean attention from a token to the previous one.

    Raises:
        ValueError: a single token; a pattern whose queries and keys are not the same tokens.
    """
    return _diagonal_mean(pattern, 1, first=1)


def induction_score(pattern: Float[Array, "*l n t s"], period: int) -> Float[Array, "*l n"]:
    """Return the mean attention, in a repeating sequence, to the token after the previous occurrence.

    Args:
        pattern: of a sequence of `period` distinct tokens that repeats.
        period: the distance between two occurrences of a token, at least 2.

    Raises:
        ValueError: a period below 2, or no repeat; a pattern whose queries and keys are not the same tokens.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads", "prefix matching score".
    """
    if period < 2:
        raise ValueError(
            f"period={period} must be at least 2, the shortest period with a next token"
        )
    return _diagonal_mean(pattern, period - 1, first=period)


def duplicate_token_score(
    pattern: Float[Array, "*l n t s"], tokens: Int[Array, " tokens"]
) -> Float[Array, "*l n"]:
    """Return the mean over repeated tokens of their total attention to earlier occurrences.

    `match_score` with `duplicate_token_target` gives TransformerLens's number, in which attention of the other tokens
    counts as a miss.

    Raises:
        ValueError: no token repeats (NaN if the tokens are traced), or the pattern has another length.

    Source: Wang et al. 2023, "Interpretability in the Wild", §3, "Duplicate Token Heads".

    >>> backwards = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.75, 0.0, 0.25]]])
    >>> duplicate_token_score(backwards, jnp.array([7, 3, 7]))
    Array([0.75], dtype=float32)
    """
    length = _check_square(pattern)
    if len(tokens) != length:
        raise ValueError(f"{len(tokens)} tokens do not fit a pattern of {length}")
    if not isinstance(tokens, jax.core.Tracer) and len(np.unique(tokens)) == len(tokens):
        raise ValueError(
            f"none of these {len(tokens)} tokens occurs twice; give tokens that repeat"
        )
    pattern = upcast(pattern)
    target = duplicate_token_target(tokens).astype(pattern.dtype)
    repeats = target.max(axis=-1)
    return (pattern * target).sum((-2, -1)) / repeats.sum()


def pattern_entropy(pattern: Float[Array, "*l n t s"]) -> Float[Array, "*l n"]:
    """Return the mean over queries of the entropy -Σ_s p·ln p, in nats: how spread out the attention is."""
    pattern = upcast(pattern)
    # xlogy has an infinite derivative at 0, so the gradient of a masked score would be NaN.
    logs = jnp.log(jnp.where(pattern > 0, pattern, 1.0))
    return -(pattern * logs).sum(-1).mean(-1)


def copying_score(params: Params, config: Config) -> Float[Array, "l n"]:
    """Return Σλ / Σ|λ|: 1 if attending to a token raises the logit of that token, -1 if it lowers it.

    λ are the eigenvalues of the full OV circuit W_E · W_V · W_O · W_U, which maps tokens to logits. At most d_head of
    them are not 0; they are computed from an h × h matrix. The score is 1 if all are positive, -1 if all are negative,
    and 0 for a head that writes nothing. Norms, biases and other layers are left out (fold the norms first). Positive
    eigenvalues summarise copying; they do not prove it.

    Raises:
        ValueError: unstacked parameters, or those of another Config.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", "Detecting Copying Heads".

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> copying_score(jaxformer.init(config, jax.random.key(0)), config).shape
    (2, 4)
    """
    # W_E · (OV · W_U) and (OV · W_U) · W_E have the same nonzero eigenvalues; the second has no axis of length v.
    full = ov_circuit(params, config) @ (unembedding(params) @ upcast(params.W_E))
    return quotient(full.trace, jnp.abs(full.eigenvalues).sum(-1))


def _diagonal_mean(pattern: Array, back: int, first: int) -> Array:
    """Return the mean attention to the token `back` positions earlier, over the queries from `first` on."""
    length = _check_square(pattern)
    if length <= first:
        raise ValueError(f"a pattern of {length} tokens is too short; give at least {first + 1}")
    queries = jnp.arange(first, length)
    return upcast(pattern)[..., queries, queries - back].mean(-1)


def _check_square(pattern: Array) -> int:
    """Return the number of tokens of a pattern.

    Raises:
        ValueError: the numbers of queries and keys differ.
    """
    queries, keys = pattern.shape[-2:]
    if queries != keys:
        raise ValueError(
            f"a pattern of {queries} queries and {keys} keys is not that of a full sequence; "
            "capture it with forward, without a cache"
        )
    return queries
