"""What heads do, read off their weights: circuits, how they compose, and their directions as tokens.

A head has two: the QK circuit (who looks at whom) and the OV circuit (what a look moves). Both are d × d and of
rank d_head, so they stay factored (`jaxformer.interp.factored`). All functions here take rows: a state times a
circuit, x · W_V · W_O; the papers write columns.

What the weights alone do not say is left out: norms (fold them into the weights first, with
`jaxformer.interp.fold`), biases, positions, and the caps of scores and logits. A norm after attention
(`Config.norm_place`), which no fold takes away, has its weights, and a layer norm its centring, in the OV circuit;
its division is left out as the others' are.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxformer.config import Config
from jaxformer.interp.factored import FactoredMatrix, quotient, root
from jaxformer.model.norm import CENTRES, norm_gain
from jaxformer.model.params import Params, stacked
from jaxformer.model.stream import widened


def qk_circuit(params: Params, config: Config) -> FactoredMatrix:
    """W_Q · W_Kᵀ of every head, [l n d d]: rows are read from the token that looks, columns from the one seen.

    A score is x_t · QK · x_s times the attention scale, which is left out, as is scale_by_depth. With rotary
    positions it is that of a token with itself: at a distance, the turn between the two factors differs. Query heads
    of one group share their key head. In float32 or wider.

    Raises:
        ValueError: a qk_norm, with which no matrix gives the scores; unstacked parameters, or those of another Config.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", "Splitting Attention
    Head terms into Query-Key and Output-Value Circuits".

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5, n_kv_heads=2)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> qk_circuit(params, config).shape, qk_circuit(params, config)[1, 3].shape
    ((2, 4, 8, 8), (8, 8))
    """
    if config.qk_norm != "none":
        raise ValueError(
            f'qk_norm="{config.qk_norm}" divides queries and keys by their own size, so that no matrix of two '
            "tokens' states gives their score; capture scores, or use what moves: ov_circuit"
        )
    attention = _attention(params, config)
    keys = _per_query_head(attention.W_K, config)
    return FactoredMatrix(attention.W_Q.transpose(0, 2, 1, 3), keys.mT)


def ov_circuit(params: Params, config: Config) -> FactoredMatrix:
    """W_V · W_O of every head, [l n d d]: rows are read from the token seen, columns written to the one that looks.

    Query heads of one group share their value head. In float32 or wider.

    Raises:
        ValueError: unstacked parameters, or those of another Config.

    Source: as `qk_circuit`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> ov_circuit(jaxformer.init(config, jax.random.key(0)), config).svd().S.shape
    (2, 4, 2)
    """
    attention, norm = _attention(params, config), stacked(params, config).attn_post_norm
    written = attention.W_O
    if norm is not None:
        gain = norm_gain(widened(norm.w), config)
        written = CENTRES[config.norm](written) * gain[:, None, None]
    return FactoredMatrix(_per_query_head(attention.W_V, config), written)


def full_qk_circuit(params: Params, config: Config) -> FactoredMatrix:
    """W_E · QK · W_Eᵀ of every head, [l n v v]: how much each token (row) looks for each token (column).

    Its factors are l·n·v·h numbers each. Where that is too much, take one head, W_E being `embeddings(params, config)`:
    `W_E @ qk_circuit(params, config)[layer, head] @ W_E.T`.

    Raises:
        ValueError: as `qk_circuit`.

    Source: as `qk_circuit`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> full_qk_circuit(jaxformer.init(config, jax.random.key(0)), config)[0, 1].AB.shape
    (5, 5)
    """
    W_E = embeddings(params, config)
    return W_E @ qk_circuit(params, config) @ W_E.T


def full_ov_circuit(params: Params, config: Config) -> FactoredMatrix:
    """W_E · OV · W_U of every head, [l n v v]: what seeing each token (row) adds to each token's logit (column).

    As large as `full_qk_circuit`; of what lies between the head and the logits, the final norm and later layers
    are left out.

    Raises:
        ValueError: as `qk_circuit`.

    Source: as `qk_circuit`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> full_ov_circuit(jaxformer.init(config, jax.random.key(0)), config).shape
    (2, 4, 5, 5)
    """
    return embeddings(params, config) @ ov_circuit(params, config) @ unembedding(params)


def embeddings(params: Params, config: Config) -> Float[Array, "v d"]:
    """What each token brings to the stream: the rows of W_E, times embedding_scale. In float32 or wider."""
    return widened(params.W_E) * config.embedding_scale


def unembedding(params: Params) -> Float[Array, "d v"]:
    """The directions that the logits query: W_U, or the embedding's where it is tied. In float32 or wider."""
    return widened(params.W_E.T if params.W_U is None else params.W_U)


def composition_score(writer: FactoredMatrix, reader: FactoredMatrix) -> Float[Array, "*l"]:
    """How much of what one matrix writes the other reads: ‖W·R‖ / (‖W‖·‖R‖), between 0 and 1.

    All are Frobenius norms. A matrix of zeros composes with nothing: 0.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", "Three Kinds of Composition".

    >>> line = FactoredMatrix(jnp.array([[1.0], [0.0]]), jnp.array([[1.0, 0.0]]))
    >>> float(composition_score(line, line)), float(composition_score(line, line.T * 0.0))
    (1.0, 0.0)
    """
    return quotient((writer @ reader).norm(), writer.norm() * reader.norm())


def composition_scores(params: Params, config: Config, kind: str = "q") -> Float[Array, "l n l n"]:
    """How much each head reads of what each head in an earlier layer writes: ‖OV·R‖ / (‖OV‖·‖R‖).

    Axes are the writer's layer and head, then the reader's. R is the reader's QK for its queries ("q"), QKᵀ
    for its keys ("k"), OV for its values ("v"). Where the reader is in no later layer it is 0, for there is
    no path. Chance is not 0: compare with `composition_baseline`. Norms between the two are left out.

    Raises:
        ValueError: another kind; and as `qk_circuit`.

    Source: as `composition_score`; axes and zeros as in TransformerLens's `all_composition_scores`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> scores = composition_scores(jaxformer.init(config, jax.random.key(0)), config, "k")
    >>> scores.shape, float(scores[1].max())
    ((2, 4, 2, 4), 0.0)
    """
    if kind not in READERS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(map(repr, READERS))}")
    writer, reader = ov_circuit(params, config), READERS[kind](params, config)
    reader_gram = reader.B @ reader.B.mT

    def norms(layer: FactoredMatrix) -> Float[Array, "n l m"]:
        """‖A·M·D‖ for writers A·B of one layer and all readers C·D, with M = B·C: h × h for each pair."""
        between = jnp.einsum("nhd,lmdi->nlmhi", layer.B, reader.A)
        left = jnp.einsum("nhj,nlmji->nlmhi", layer.A.mT @ layer.A, between)
        right = jnp.einsum("nlmhi,lmij->nlmhj", between, reader_gram)
        return root(jnp.sum(left * right, axis=(-2, -1)))

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
"""What a head reads with, by the kind of composition; rows are what it reads from the stream."""


class Baseline(NamedTuple):
    """What chance gives: the mean of a score and its standard deviation from one draw to another."""

    mean: Float[Array, ""]
    std: Float[Array, ""]


def composition_baseline(config: Config, key: Key[Array, ""], samples: int = 100) -> Baseline:
    """The composition score of two heads of this Config's shape with weights drawn at random.

    It is about 1/√d_model, the root of its mean square: a score of 0.1 may be nothing, or much. Queries, keys
    and values have the same: four matrices are drawn alike, from N(0, 1), and a score does not see their scale.

    Args:
        config: of which only d_model and d_head matter.
        key: of the draws.
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

    def one(key: Key[Array, ""]) -> Float[Array, ""]:
        a, b, c, d = jax.random.normal(key, shape)
        return composition_score(FactoredMatrix(a, b.T), FactoredMatrix(c, d.T))

    scores = jax.lax.map(one, jax.random.split(key, samples))
    return Baseline(scores.mean(), scores.std(ddof=1))


class Directions(NamedTuple):
    """Each head's singular directions as tokens, the strongest first in both axes; p directions, i tokens."""

    strength: Float[Array, "l n p"]
    """singular values of the OV circuit"""
    read: Int[Array, "l n p i"]
    """tokens whose embeddings have the most of what the direction reads"""
    read_value: Float[Array, "l n p i"]
    """how much: embedding · left singular vector"""
    written: Int[Array, "l n p i"]
    """tokens whose logits the direction raises most"""
    written_value: Float[Array, "l n p i"]
    """by how much: right singular vector · unembedding"""


def read_through_unembedding(
    params: Params,
    config: Config,
    *,
    directions: int = 10,
    tokens: int = 10,
    negative: bool = False,
) -> Directions:
    """The singular vectors of every OV circuit as the tokens that they read and the tokens that they write.

    A direction of strength S that reads a of a token adds S·a times its written values to the logits. Its two
    vectors are determined up to a common sign: here, the token that it writes most strongly has a positive
    value. Tokens read with a negative value write the negative: see the other end of both with
    negative=True. Norms, biases and later layers are left out, as in `ov_circuit`.

    Args:
        directions: of each head, at most; a head has no more than d_head and d_model.
        tokens: of each direction and side, at most; there are no more than n_vocab.
        negative: list the tokens with the least values, the least first, in place of the greatest.

    Raises:
        ValueError: fewer than one direction or token; as `qk_circuit`.

    Source: Millidge & Black 2022, "The Singular Value Decompositions of Transformer Weight Matrices are Highly
    Interpretable".

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> read_through_unembedding(params, config, tokens=3).written.shape
    (2, 4, 2, 3)
    """
    for name, value in (("directions", directions), ("tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    W_E, W_U, end = embeddings(params, config), unembedding(params), -1.0 if negative else 1.0
    top = partial(jax.lax.top_k, k=min(tokens, config.n_vocab))

    def layer(circuit: FactoredMatrix) -> Any:
        U, S, Vh = circuit.svd()
        read = U.mT[:, :directions] @ W_E.T
        written = Vh[:, :directions] @ W_U
        most = jnp.take_along_axis(written, jnp.abs(written).argmax(-1, keepdims=True), -1)
        sign = jnp.where(most < 0, -end, end).astype(written.dtype)
        (reads, r), (writes, w) = top(sign * read), top(sign * written)
        return S[:, :directions], r, end * reads, w, end * writes

    # One layer at a time: of all, the values are l·n·directions·v numbers.
    return Directions(*jax.lax.map(layer, ov_circuit(params, config)))


def _attention(params: Params, config: Config) -> Any:
    """The attention layers' parameters, checked, in float32 or wider."""
    return jax.tree.map(widened, stacked(params, config).attn)


def _per_query_head(W: Float[Array, "l d k h"], config: Config) -> Float[Array, "l n d h"]:
    """Heads in front, each key/value head once for every query head that shares it."""
    sizes = config.sizes
    return jnp.repeat(W.transpose(0, 2, 1, 3), sizes["n"] // sizes["k"], axis=1)
