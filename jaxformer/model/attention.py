"""Attention: the only place where information moves between positions.

A layer is the sum of its heads. A head is four linear functions: Q, K and V compute a query, a key and a value from
each state, and O writes what the head reads to the stream: the average of the values of all positions up to its own,
weighted by how well their keys match its query.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.model.cache import LayerCache
from jaxformer.model.cpu import einsum_merged, masked, recomputed
from jaxformer.model.kernels import fused_attention, in_blocks
from jaxformer.model.norm import normalize_heads
from jaxformer.model.params import Attention
from jaxformer.model.position import is_local, layer_index, rotate
from jaxformer.model.stream import Values, add_bias, einsum_f32, linear, soft_cap, upcast
from jaxformer.model.tap import Tap
from jaxformer.sites import Layer


def attend(
    attention: Attention, config: Config, state: Float[Array, "t d"], positions: Int[Array, " t"] | None = None, *,
    layer: Layer = None, cache: LayerCache | None = None, tap: Tap = Tap(), compute: Compute = Compute(),
) -> Float[Array, "t d"]:  # fmt: skip
    """Return the update that one attention layer writes to the residual stream.

    `layer`, the index of the layer, is required if the layers of the Config differ. Where `positions` restart, a
    document begins, which sees no other. With a cache, the keys and values of these states are added to it.

    Source: Vaswani et al. 2017, §3.2; grouped queries: Ainslie et al. 2023, "GQA", §2.2.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=0, n_vocab=5)
    >>> [block] = jaxformer.unstack(jaxformer.init(config, jax.random.key(0))).blocks
    >>> attend(block.attn, config, jnp.ones((3, 8))).shape
    (3, 8)
    """
    query_positions = jnp.arange(len(state), dtype=jnp.int32) if positions is None else positions
    q = tap("q", linear(state, attention.W_Q, attention.b_Q))
    k = tap("k", linear(state, attention.W_K, attention.b_K))
    v = tap("v", linear(state, attention.W_V, attention.b_V))
    if config.qk_norm != "none":
        q = normalize_heads(q, attention.norm_Q, config)
        k = normalize_heads(k, attention.norm_K, config)
    if config.position == "rotary":
        q = tap("rot_q", rotate(q, query_positions, config, layer))
        k = tap("rot_k", rotate(k, query_positions, config, layer))
    if config.scale_scores_by_layer:
        q = q / (1 + layer_index(config, layer)).astype(q.dtype)
    q, k, v, key_positions = group_heads(q, config), heads_first(k), heads_first(v), query_positions
    if cache is not None:
        k, v, key_positions = cache.extend(k, v, query_positions)
    mask = attention_mask(config, layer, query_positions, key_positions)
    if positions is not None and cache is None:
        mask &= same_document(positions)
    z = KERNELS[compute.kernel](
        config, q, k, v, mask, tap, causal=positions is None and cache is None
    )
    return write_heads(attention, tap("z", heads_first(join_groups(z))), tap)


def attention_mask(
    config: Config, layer: Layer, positions: Int[Array, " t"], key_positions: Int[Array, " s"]
) -> Bool[Array, "t s"]:
    """Say which keys each query may attend to: none after its position, none before the layer's window.

    Source: the window: Beltagy et al. 2020, "Longformer", §3.1.
    """
    distance = positions[:, None] - key_positions
    if config.window is None:
        return distance >= 0
    within = (distance < config.window) | ~is_local(config, layer)
    return (distance >= 0) & within & (key_positions >= 0)


def same_document(positions: Int[Array, " t"]) -> Bool[Array, "t t"]:
    """Say which positions belong to one document; a document begins wherever positions restart."""
    start = jnp.arange(len(positions), dtype=jnp.int32) - positions
    return start[:, None] == start


def einsum_attention(
    config: Config, q: Float[Array, "k g t h"], k: Float[Array, "k s h"], v: Float[Array, "k s h"],
    mask: Bool[Array, "t s"], tap: Tap, *, causal: bool,
) -> Float[Array, "k g t h"]:  # fmt: skip
    """Return softmax(q·k · scale) · v for each head, written out; the softmax in float32 or wider."""
    scores = einsum_merged("kgth,ksh->kgts", "gt", q, k) * config.score_scale
    scores = masked(soft_cap(scores, config.attention_soft_cap), mask)
    pattern = softmax(tap("scores", join_groups(scores))).astype(q.dtype)
    mix = lambda pattern: einsum_merged("kgts,ksh->kgth", "gt", pattern.reshape(scores.shape), v)  # noqa: E731
    return recomputed(mix)(tap("pattern", pattern)).astype(q.dtype)


KERNELS = {"einsum": einsum_attention, "blocked": in_blocks(einsum_attention), "fused": fused_attention}  # fmt: skip
"""The ways to compute attention, by Compute.kernel. `causal`: keys and queries stand at 0, 1, 2, ..."""


def write_heads(
    attention: Attention, z: Float[Array, "t n h"], tap: Tap = Tap()
) -> Float[Array, "t d"]:
    """Return the sum of what the heads write. The part of each head is computed only if it is captured or edited."""
    each = einsum_f32("tnh,nhd->tnd", z, attention.W_O).astype(z.dtype)
    # If nobody captures or edits `each`, the compiler drops it.
    if (head_out := tap("head_out", each)) is not each:
        return add_bias(upcast(head_out).sum(axis=1), attention.b_O).astype(z.dtype)
    return add_bias(einsum_merged("tnh,nhd->td", "nh", z, attention.W_O), attention.b_O).astype(z.dtype)  # fmt: skip


def heads_first(vectors: Float[Array, "t n h"]) -> Float[Array, "n t h"]:
    """Swap positions and heads; this function is its own inverse."""
    return vectors.transpose(1, 0, 2)


def group_heads(q: Float[Array, "t n h"], config: Config) -> Float[Array, "k g t h"]:
    """Put the g query heads that share a key/value head side by side."""
    groups = config.n_kv_heads or config.n_heads
    return heads_first(q).reshape(groups, config.n_heads // groups, len(q), config.d_head)


def join_groups(values: Values) -> Values:
    """Put all query heads along one axis: `k g ...` becomes `n ...`."""
    return values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])


@jax.custom_jvp
def softmax(scores: Values) -> Values:
    """exp(x_s) / Σ_s exp(x_s). Its derivative p·(ẋ - Σ_s p·ẋ) keeps only the result p; jax.nn.softmax keeps more."""
    return jax.nn.softmax(scores, axis=-1)


@softmax.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    pattern, change = softmax(*primals), tangents[0]
    return pattern, pattern * (change - (pattern * change).sum(axis=-1, keepdims=True))
