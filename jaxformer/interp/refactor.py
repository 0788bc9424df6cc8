"""Rewrite heads in the basis of their singular vectors: the same QK and OV circuits, with orthogonal factors.

The pattern of a head depends only on W_Q·W_Kᵀ, and its output on W_V·W_O, so the basis of queries and keys, and that of
values, is arbitrary. These functions choose the singular vectors: then each coordinate of q, k or z is one independent
direction, and the first is the strongest.

Query heads that share a key/value head share its basis too: their matrices are stacked for one decomposition. A bias is
one more row of the matrix, for an input of 1.

A singular value decomposition has a derivative only if its singular values are distinct and not zero. So do not
differentiate through these functions if d_head is larger than d_model.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; the choice of factors and the
row for biases: TransformerLens, refactor_factored_attn_matrices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.interp.factored import FactoredMatrix
from jaxformer.model.checks import check_params, stacked
from jaxformer.model.params import Attention, Params
from jaxformer.model.stream import upcast


def refactor_qk_ov(params: Params, config: Config) -> Params:
    """Apply `refactor_qk` and `refactor_ov`: the same logits.

    Raises:
        ValueError: as `refactor_qk`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> W_K = refactor_qk_ov(jaxformer.init(config, jax.random.key(0)), config).blocks.attn.W_K
    >>> products = W_K[0, :, 1].T @ W_K[0, :, 1]  # between the columns of a head
    >>> bool(jnp.allclose(products, jnp.diag(jnp.diag(products)), atol=1e-5))
    True
    """
    return refactor_ov(refactor_qk(params, config), config)


def refactor_qk(params: Params, config: Config) -> Params:
    """Replace W_Q and W_K of a group by U·√S and V·√S, where W_Q·W_Kᵀ = U·S·Vᵀ: the same logits.

    Queries and keys both get √S, so that they share the scale equally.

    Raises:
        ValueError: rotary positions or a qk_norm, with which only `refactor_ov` works; unstacked layers.
    """
    check_params(params, config)
    if config.rotary_width:
        raise ValueError(
            'position="rotary" rotates pairs of coordinates of queries and keys, so their basis must not change; '
            "use refactor_ov alone"
        )
    if config.qk_norm != "none":
        raise ValueError(
            f'qk_norm="{config.qk_norm}" has a weight for each coordinate of queries and keys, so their basis must '
            "not change; use refactor_ov alone"
        )
    attn = stacked(params, config).attn
    kv_heads, queries = attn.W_K.shape[2], _with_bias(attn.W_Q, attn.b_Q)
    layers, heads, rows, width = queries.shape

    def group(queries: Float[Array, "g row h"], key: Float[Array, "row h"]) -> tuple[Array, Array]:
        U, S, Vh = svd_of_product(queries.reshape(-1, width), key.T)
        root = jnp.sqrt(S)
        return (U * root).reshape(queries.shape), Vh.T * root

    grouped = queries.reshape(layers, kv_heads, heads // kv_heads, rows, width)
    q, k = _each_group(group)(grouped, _with_bias(attn.W_K, attn.b_K))
    W_Q, b_Q = _without_bias(q.reshape(queries.shape), attn.b_Q)
    W_K, b_K = _without_bias(k, attn.b_K)
    return with_attention(params, attn._replace(W_Q=W_Q, b_Q=b_Q, W_K=W_K, b_K=b_K))


def refactor_ov(params: Params, config: Config) -> Params:
    """Replace W_V and W_O of a group by U·S and Vᵀ, where W_V·W_O = U·S·Vᵀ: the same logits.

    The rows of W_O become orthonormal, so z has the norm of the head's output if each head has its own values. With
    value biases, the columns of W_V extended by the bias are orthogonal; after `fold_value_bias` those of W_V alone
    are, as in TransformerLens.

    Raises:
        ValueError: unstacked layers.
    """
    attn = stacked(params, config).attn
    layers, heads, width, d_model = attn.W_O.shape
    kv_heads = attn.W_V.shape[2]

    def group(value: Float[Array, "row h"], W_O: Float[Array, "g h d"]) -> tuple[Array, Array]:
        U, S, Vh = svd_of_product(value, jnp.concatenate(list(W_O), axis=1))
        return U * S, Vh.reshape(width, -1, d_model).transpose(1, 0, 2)

    grouped = upcast(attn.W_O).reshape(layers, kv_heads, heads // kv_heads, width, d_model)
    v, o = _each_group(group)(_with_bias(attn.W_V, attn.b_V), grouped)
    W_V, b_V = _without_bias(v, attn.b_V)
    return with_attention(params, attn._replace(W_V=W_V, b_V=b_V, W_O=o.reshape(attn.W_O.shape)))


def svd_of_product(
    left: Float[Array, "row h"], right: Float[Array, "h column"]
) -> tuple[Float[Array, "row h"], Float[Array, " h"], Float[Array, "h column"]]:
    """Return U, S and Vᵀ of a product without forming it, padded with zeros to h directions."""
    U, S, Vh = FactoredMatrix(left, right).svd()
    missing = left.shape[1] - len(S)
    return (
        jnp.pad(U, ((0, 0), (0, missing))),
        jnp.pad(S, (0, missing)),
        jnp.pad(Vh, ((0, missing), (0, 0))),
    )


def with_attention(params: Params, attn: Attention) -> Params:
    """Return the parameters with other attention parameters, cast to their dtype."""
    attn = jax.tree.map(lambda array: array.astype(params.W_E.dtype), attn)
    return params._replace(blocks=params.blocks._replace(attn=attn))


def _each_group(function: Any) -> Any:
    """Map a function over layers and key/value heads."""
    return jax.vmap(jax.vmap(function))


def _with_bias(
    W: Float[Array, "l d n h"], b: Float[Array, "l n h"] | None
) -> Float[Array, "l n row h"]:
    """Return one matrix for each head, with the bias as its last row, in float32 or wider."""
    matrices = W.transpose(0, 2, 1, 3)
    if b is not None:
        matrices = jnp.concatenate([matrices, b[:, :, None]], axis=2)
    return upcast(matrices)


def _without_bias(
    matrices: Float[Array, "l n row h"], b: Float[Array, "l n h"] | None
) -> tuple[Float[Array, "l d n h"], Float[Array, "l n h"] | None]:
    """Undo `_with_bias`; without a bias `b` must be None."""
    if b is None:
        return matrices.transpose(0, 2, 1, 3), None
    return matrices[:, :, :-1].transpose(0, 2, 1, 3), matrices[:, :, -1]
