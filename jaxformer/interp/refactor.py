"""A head's own coordinates: the same maps QK and OV, in factors whose columns are orthogonal.

Queries, keys and values are no more than the two halves of low-rank matrices: a head's pattern depends on
W_Q·W_Kᵀ alone, and what it moves on W_V·W_O. Between the halves any basis will do. These functions choose the
singular vectors', so that a coordinate of q, k or z is one thing that the head asks for or moves, and the first
is the strongest.

Query heads that share a key/value head share its coordinates too: their matrices are stacked, and one
decomposition serves the group. Biases go along, as one more row of the matrix, which reads a constant 1.

A singular value decomposition has derivatives only where its singular values are different and not zero:
differentiate through these functions in no model that has a head wider than the stream.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; the choice of factors and the
row for biases: TransformerLens, refactor_factored_attn_matrices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.interp.factored import FactoredMatrix
from jaxformer.model.params import Attention, Params, stacked
from jaxformer.model.stream import widened


def refactor_qk_ov(params: Params, config: Config) -> Params:
    """Both `refactor_qk` and `refactor_ov`: the same logits.

    Raises:
        ValueError: rotary positions or a qk_norm, which leave only `refactor_ov`; unstacked layers.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> W_K = refactor_qk_ov(jaxformer.init(config, jax.random.key(0)), config).blocks.attn.W_K
    >>> products = W_K[0, :, 1].T @ W_K[0, :, 1]  # between the columns of a head
    >>> bool(jnp.allclose(products, jnp.diag(jnp.diag(products)), atol=1e-5))
    True
    """
    return refactor_ov(refactor_qk(params, config), config)


def refactor_qk(params: Params, config: Config) -> Params:
    """W_Q and W_K of a group as U·√S and V·√S, where W_Q·W_Kᵀ = U·S·Vᵀ: the same logits.

    Both get the root, so that neither query nor key is the one with the norm.

    Raises:
        ValueError: rotary positions; a qk_norm; unstacked layers.
    """
    if config.rotary_width:
        raise ValueError(
            'position="rotary" turns pairs of coordinates of queries and keys, which other coordinates would not '
            "survive; refactor only what moves, by refactor_ov"
        )
    if config.qk_norm != "none":
        raise ValueError(
            f'qk_norm="{config.qk_norm}" weighs each coordinate of queries and keys, and others would be weighed '
            "otherwise; refactor only what moves, by refactor_ov"
        )
    attn = stacked(params, config).attn
    n_keys, queries = attn.W_K.shape[2], _with_bias(attn.W_Q, attn.b_Q)
    layers, heads, rows, width = queries.shape

    def of_group(queries: Float[Array, "g D h"], key: Float[Array, "D h"]) -> tuple[Array, Array]:
        left, strength, right = svd_of_product(queries.reshape(-1, width), key.T)
        root = jnp.sqrt(strength)
        return (left * root).reshape(queries.shape), right.T * root

    by_key = queries.reshape(layers, n_keys, heads // n_keys, rows, width)
    q, k = _each_group(of_group)(by_key, _with_bias(attn.W_K, attn.b_K))
    W_Q, b_Q = _without_bias(q.reshape(queries.shape), attn.b_Q)
    W_K, b_K = _without_bias(k, attn.b_K)
    return with_attention(params, attn._replace(W_Q=W_Q, b_Q=b_Q, W_K=W_K, b_K=b_K))


def refactor_ov(params: Params, config: Config) -> Params:
    """W_V and W_O of a group as U·S and Vᵀ, where W_V·W_O = U·S·Vᵀ: the same logits.

    W_O's rows become orthonormal, so that a head that shares its values with none has a z as large as what it
    writes. With a bias on values it is the columns of W_V with the bias under them that are orthogonal:
    `fold_value_bias` first makes them those of W_V alone, as they are in TransformerLens.

    Raises:
        ValueError: unstacked layers.
    """
    attn = stacked(params, config).attn
    layers, heads, width, model = attn.W_O.shape
    n_keys = attn.W_V.shape[2]

    def of_group(value: Float[Array, "D h"], writers: Float[Array, "g h d"]) -> tuple[Array, Array]:
        side_by_side = jnp.concatenate(list(writers), axis=1)
        left, strength, right = svd_of_product(value, side_by_side)
        return left * strength, right.reshape(width, -1, model).transpose(1, 0, 2)

    writers = widened(attn.W_O).reshape(layers, n_keys, heads // n_keys, width, model)
    v, o = _each_group(of_group)(_with_bias(attn.W_V, attn.b_V), writers)
    W_V, b_V = _without_bias(v, attn.b_V)
    return with_attention(params, attn._replace(W_V=W_V, b_V=b_V, W_O=o.reshape(attn.W_O.shape)))


def svd_of_product(
    left: Float[Array, "i h"], right: Float[Array, "h j"]
) -> tuple[Float[Array, "i h"], Float[Array, " h"], Float[Array, "h j"]]:
    """U, S and Vᵀ of a product that is never formed; zeros where it has fewer than h directions."""
    U, S, Vh = FactoredMatrix(left, right).svd()
    missing = left.shape[1] - len(S)
    return (
        jnp.pad(U, ((0, 0), (0, missing))),
        jnp.pad(S, (0, missing)),
        jnp.pad(Vh, ((0, missing), (0, 0))),
    )


def with_attention(params: Params, attn: Attention) -> Params:
    """The parameters with another attention, in their own dtype."""
    attn = jax.tree.map(lambda array: array.astype(params.W_E.dtype), attn)
    return params._replace(blocks=params.blocks._replace(attn=attn))


def _each_group(of_group: Any) -> Any:
    """Over layers, then over key/value heads."""
    return jax.vmap(jax.vmap(of_group))


def _with_bias(
    W: Float[Array, "l d n h"], b: Float[Array, "l n h"] | None
) -> Float[Array, "l n D h"]:
    """A matrix for each head, with the bias as a last row; wide enough for a decomposition."""
    matrices = W.transpose(0, 2, 1, 3)
    if b is not None:
        matrices = jnp.concatenate([matrices, b[:, :, None]], axis=2)
    return widened(matrices)


def _without_bias(
    matrices: Float[Array, "l n D h"], b: Float[Array, "l n h"] | None
) -> tuple[Float[Array, "l d n h"], Float[Array, "l n h"] | None]:
    """The two again; `b` says whether there is a bias."""
    if b is None:
        return matrices.transpose(0, 2, 1, 3), None
    return matrices[:, :, :-1].transpose(0, 2, 1, 3), matrices[:, :, -1]
