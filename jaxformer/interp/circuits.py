"""What the circuits of attention heads show: how heads compose, and which tokens they read and write.

The circuits themselves come from `jaxformer.interp.qk_ov`; they can be imported from here too.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxformer.config import Config
from jaxformer.interp.factored import FactoredMatrix, quotient, root
from jaxformer.interp.qk_ov import (
    embeddings,
    full_ov_circuit,
    full_qk_circuit,
    ov_circuit,
    qk_circuit,
    unembedding,
)
from jaxformer.model.checks import check_params
from jaxformer.model.params import Params

__all__ = [
    "Baseline",
    "Directions",
    "composition_baseline",
    "composition_score",
    "composition_scores",
    "embeddings",
    "full_ov_circuit",
    "full_qk_circuit",
    "ov_circuit",
    "qk_circuit",
    "read_through_unembedding",
    "unembedding",
]


def composition_score(writer: FactoredMatrix, reader: FactoredMatrix) -> Float[Array, "*l"]:
    """Return ‖W·R‖ / (‖W‖·‖R‖), between 0 and 1: how much of what one matrix writes the other reads.

    The norms are Frobenius norms. The score of a matrix of zeros is 0.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", "Three Kinds of Composition".

    >>> line = FactoredMatrix(jnp.array([[1.0], [0.0]]), jnp.array([[1.0, 0.0]]))
    >>> float(composition_score(line, line)), float(composition_score(line, line.T * 0.0))
    (1.0, 0.0)
    """
    return quotient((writer @ reader).norm(), writer.norm() * reader.norm())


def composition_scores(params: Params, config: Config, kind: str = "q") -> Float[Array, "l n l n"]:
    """Return the composition score of every head's OV circuit with every head of a later layer.

    The axes are the writer's layer and head, then the reader's. The score is 0 if the reader is not in a later layer.
    Unrelated heads do not score 0: compare with `composition_baseline`. Norms between the two are left out.

    Args:
        kind: through what the reader reads. "q": its queries (QK); "k": its keys (QKᵀ); "v": its values (OV).

    Raises:
        ValueError: another kind; and as `qk_circuit`.

    Source: axes and zeros as in TransformerLens's `all_composition_scores`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> scores = composition_scores(jaxformer.init(config, jax.random.key(0)), config, "k")
    >>> scores.shape, float(scores[1].max())
    ((2, 4, 2, 4), 0.0)
    """
    check_params(params, config)
    if kind not in READERS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(map(repr, READERS))}")
    writer, reader = ov_circuit(params, config), READERS[kind](params, config)
    reader_gram = reader.B @ reader.B.mT

    def norms(layer: FactoredMatrix) -> Float[Array, "n l n"]:
        """‖A·M·D‖ for writers A·B of one layer and all readers C·D, with M = B·C: h × h for each pair."""
        between = layer.B[:, None, None] @ reader.A
        left = (layer.A.mT @ layer.A)[:, None, None] @ between
        return root(jnp.sum(left * (between @ reader_gram), axis=(-2, -1)))

    # One layer of writers at a time: all pairs at once would be l²·n²·h² numbers.
    alone = writer.norm()[..., None, None] * reader.norm()
    scores = quotient(jax.lax.map(norms, writer), alone)
    layers = jnp.arange(config.n_layers)
    later = layers[:, None, None, None] < layers[:, None]
    return jnp.where(later, scores, 0.0)


READERS: dict[str, Any] = {
    "q": qk_circuit,
    "k": lambda params, config: qk_circuit(params, config).T,
    "v": ov_circuit,
}
"""The matrix through which a head reads the stream (as rows), by the kind of composition."""


class Baseline(NamedTuple):
    """The mean and the standard deviation of a score over random weights."""

    mean: Float[Array, ""]
    std: Float[Array, ""]


def composition_baseline(config: Config, key: Key[Array, ""], samples: int = 100) -> Baseline:
    """Return the composition score of two heads with random weights. It depends only on d_model and d_head.

    It is about 1/√d_model, the root of its mean square, and the same for queries, keys and values. The weights are
    drawn from N(0, 1); their scale does not change the score.

    Args:
        samples: pairs of heads, at least 2.

    Raises:
        ValueError: fewer than 2 samples.

    >>> config = Config(n_layers=2, d_model=64, n_heads=4, d_head=16, d_mlp=0, n_vocab=5)
    >>> mean, std = composition_baseline(config, jax.random.key(0))
    >>> 0.1 < float(mean) < 0.15, float(std) < 0.01
    (True, True)
    """
    if samples < 2:
        raise ValueError(f"samples={samples} must be at least 2, to have a standard deviation")
    shape = (4, config.d_model, config.d_head)

    def sample(key: Key[Array, ""]) -> Float[Array, ""]:
        a, b, c, d = jax.random.normal(key, shape)
        return composition_score(FactoredMatrix(a, b.T), FactoredMatrix(c, d.T))

    scores = jax.lax.map(sample, jax.random.split(key, samples))
    return Baseline(scores.mean(), scores.std(ddof=1))


class Directions(NamedTuple):
    """Each head's singular directions and their tokens, the strongest first."""

    strength: Float[Array, "l n direction"]
    """singular values of the OV circuit"""
    read: Int[Array, "l n direction token"]
    """tokens whose embeddings are largest along the left singular vector, which the direction reads"""
    read_value: Float[Array, "l n direction token"]
    """embedding · left singular vector"""
    written: Int[Array, "l n direction token"]
    """tokens whose logits the direction raises most"""
    written_value: Float[Array, "l n direction token"]
    """right singular vector · unembedding"""


def read_through_unembedding(
    params: Params,
    config: Config,
    *,
    directions: int = 10,
    tokens: int = 10,
    negative: bool = False,
) -> Directions:
    """Return the tokens that the singular vectors of every OV circuit read and write.

    A direction of strength S that reads the value a of a token adds S·a times its written values to the logits. The
    signs of both vectors are chosen so that the token with the largest |written value| has a positive value. Tokens
    that are read with a negative value write the negative; negative=True lists that end of both vectors. Norms,
    biases and later layers are left out, as in `ov_circuit`.

    Args:
        directions: at most this many per head; a head has no more than d_head and d_model.
        tokens: at most this many per direction and side.
        negative: list the tokens with the smallest values, the smallest first, instead of the largest.

    Raises:
        ValueError: fewer than one direction or token; and as `ov_circuit`.

    Source: Millidge & Black 2022, "The Singular Value Decompositions of Transformer Weight Matrices are Highly
    Interpretable".

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> read_through_unembedding(params, config, tokens=3).written.shape
    (2, 4, 2, 3)
    """
    check_params(params, config)
    for name, value in (("directions", directions), ("tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    W_E, W_U, end = embeddings(params, config), unembedding(params), -1.0 if negative else 1.0
    top = partial(jax.lax.top_k, k=min(tokens, config.n_vocab))

    def layer(circuit: FactoredMatrix) -> Any:
        U, S, Vh = circuit.svd()
        read = U.mT[:, :directions] @ W_E.T
        written = Vh[:, :directions] @ W_U
        largest = jnp.take_along_axis(written, jnp.abs(written).argmax(-1, keepdims=True), -1)
        sign = jnp.where(largest < 0, -end, end).astype(written.dtype)
        read_values, read_tokens = top(sign * read)
        written_values, written_tokens = top(sign * written)
        reads, writes = (read_tokens, end * read_values), (written_tokens, end * written_values)
        return S[:, :directions], *reads, *writes

    # One layer at a time: the values of all layers are l·n·directions·v numbers.
    return Directions(*jax.lax.map(layer, ov_circuit(params, config)))
