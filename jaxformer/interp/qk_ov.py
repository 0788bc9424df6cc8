"""The QK and OV circuits of attention heads, computed from the weights alone.

Each head has two. The QK circuit W_Q·W_Kᵀ determines how strongly a token attends to another; the OV circuit W_V·W_O
determines what attending to a token writes. Both are d × d matrices of rank d_head, so they stay factored
(`jaxformer.interp.factored`). States are row vectors here: x · W_V · W_O. The papers use column vectors.

The circuits leave out norms (fold their weights in first, with `jaxformer.interp.fold`), biases, positions and soft
caps. No fold removes a norm after attention (`Config.norm_place`): the OV circuit includes its weights and the
centring of a LayerNorm, but not its division.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", "Splitting Attention Head terms into
Query-Key and Output-Value Circuits".
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.interp.factored import FactoredMatrix
from jaxformer.model.checks import check_params, stacked
from jaxformer.model.norm import CENTRES, norm_gain
from jaxformer.model.params import Params
from jaxformer.model.stream import upcast


def qk_circuit(params: Params, config: Config) -> FactoredMatrix:
    """Return W_Q · W_Kᵀ of every head, [l n d d], in float32 or wider: rows for the query token, columns for the key.

    A score is x_t · QK · x_s times the attention scale, which is left out, as is scale_scores_by_layer. With rotary
    positions this is the score of a token with itself; at a distance, a rotation comes between the two factors.
    Query heads of one group share their key head.

    Raises:
        ValueError: a qk_norm, with which no matrix gives the scores; unstacked parameters, or those of another Config.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5, n_kv_heads=2)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> qk_circuit(params, config).shape, qk_circuit(params, config)[1, 3].shape
    ((2, 4, 8, 8), (8, 8))
    """
    check_params(params, config)
    if config.qk_norm != "none":
        raise ValueError(
            f'qk_norm="{config.qk_norm}" divides queries and keys by their own size, so no matrix gives the score of '
            "two tokens' states; capture scores, or use ov_circuit, which does not depend on queries and keys"
        )
    attention = _attention(params, config)
    keys = _per_query_head(attention.W_K, config)
    return FactoredMatrix(attention.W_Q.transpose(0, 2, 1, 3), keys.mT)


def ov_circuit(params: Params, config: Config) -> FactoredMatrix:
    """Return W_V · W_O of every head, [l n d d], in float32 or wider: rows are read, columns are written.

    Query heads of one group share their value head.

    Raises:
        ValueError: unstacked parameters, or those of another Config.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> ov_circuit(jaxformer.init(config, jax.random.key(0)), config).svd().S.shape
    (2, 4, 2)
    """
    attention, norm = _attention(params, config), stacked(params, config).attn_post_norm
    written = attention.W_O
    if norm is not None:
        gain = norm_gain(upcast(norm.w), config)
        written = CENTRES[config.norm](written) * gain[:, None, None]
    return FactoredMatrix(_per_query_head(attention.W_V, config), written)


def full_qk_circuit(params: Params, config: Config) -> FactoredMatrix:
    """Return W_E · QK · W_Eᵀ of every head, [l n v v]: how much each token (row) attends to each token (column).

    The factors have l·n·v·h numbers each. If that is too much, compute one head:
    `W_E @ qk_circuit(params, config)[layer, head] @ W_E.T` with W_E = `embeddings(params, config)`.

    Raises:
        ValueError: as `qk_circuit`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> full_qk_circuit(jaxformer.init(config, jax.random.key(0)), config)[0, 1].AB.shape
    (5, 5)
    """
    W_E = embeddings(params, config)
    return W_E @ qk_circuit(params, config) @ W_E.T


def full_ov_circuit(params: Params, config: Config) -> FactoredMatrix:
    """Return W_E · OV · W_U of every head, [l n v v]: what attending to a token (row) adds to each logit (column).

    It is as large as `full_qk_circuit`. The final norm and the layers between the head and the logits are left out.

    Raises:
        ValueError: as `ov_circuit`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> full_ov_circuit(jaxformer.init(config, jax.random.key(0)), config).shape
    (2, 4, 5, 5)
    """
    return embeddings(params, config) @ ov_circuit(params, config) @ unembedding(params)


def embeddings(params: Params, config: Config) -> Float[Array, "v d"]:
    """Return W_E times embedding_scale, in float32 or wider: what each token adds to the stream."""
    check_params(params, config)
    return upcast(params.W_E) * config.embedding_scale


def unembedding(params: Params) -> Float[Array, "d v"]:
    """Return W_U, or the transposed embedding if it is tied, in float32 or wider."""
    return upcast(params.W_E.T if params.W_U is None else params.W_U)


def _attention(params: Params, config: Config) -> Any:
    """Return the parameters of the attention layers, checked, in float32 or wider."""
    return jax.tree.map(upcast, stacked(params, config).attn)


def _per_query_head(W: Float[Array, "l d k h"], config: Config) -> Float[Array, "l n d h"]:
    """Move heads to the front and repeat each key/value head for the query heads that share it."""
    sizes = config.sizes
    return jnp.repeat(W.transpose(0, 2, 1, 3), sizes["n"] // sizes["k"], axis=1)
