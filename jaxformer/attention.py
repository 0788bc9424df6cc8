"""Attention: the only place where information moves between positions.

A layer is the sum of its heads. A head is four linear functions on a subspace of the stream: Q asks,
K is asked, V says, O writes. A token's new reading is the average of what earlier tokens (and itself)
say, weighted by how well their keys answer its query.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.position import rotary
from jaxformer.sites import Tap
from jaxformer.spec import constant, matrix, write_gain
from jaxformer.stream import query, wide


class Attention(NamedTuple):
    """The four linear functions of every head; with a leading `l` where layers are stacked."""

    W_Q: Float[Array, "*l d n h"]
    W_K: Float[Array, "*l d k h"]
    W_V: Float[Array, "*l d k h"]
    W_O: Float[Array, "*l n h d"]
    b_Q: Float[Array, "*l n h"] | None
    b_K: Float[Array, "*l k h"] | None
    b_V: Float[Array, "*l k h"] | None
    b_O: Float[Array, "*l d"] | None


class Past(NamedTuple):
    """The keys and values of the positions seen so far, zeros behind them; `l` where layers are stacked."""

    k: Float[Array, "*l s k h"]
    v: Float[Array, "*l s k h"]


def attention_spec(config: Config) -> Attention:
    """The Specs of all attention layers.

    A query·key of unit vectors has standard deviation √d_head; the scale brings that to 1. Where
    attention_scale is another, Q and K share the rest, so that scores begin with variance 1.
    """
    share = (config.d_head**0.5 * config.score_scale) ** -0.5
    qkv, all_ = config.bias in ("qkv", "all"), config.bias == "all"
    return Attention(
        W_Q=matrix(config, "l d n h", reads="d", gain=share),
        W_K=matrix(config, "l d k h", reads="d", gain=share),
        W_V=matrix(config, "l d k h", reads="d"),
        W_O=matrix(config, "l n h d", reads="n h", gain=write_gain(config)),
        b_Q=constant(config, "l n h", 0.0) if qkv else None,
        b_K=constant(config, "l k h", 0.0) if qkv else None,
        b_V=constant(config, "l k h", 0.0) if qkv else None,
        b_O=constant(config, "l d", 0.0) if all_ else None,
    )


def attend(
    attention: Attention,
    config: Config,
    state: Float[Array, "t d"],
    positions: Int[Array, " t"],
    past: Past | None,
    *,
    tap: Tap,
    compute: Compute,
) -> tuple[Float[Array, "t d"], Past | None]:
    """One layer's update of each state, and the past with this call's keys and values in it.

    Source: Vaswani et al. 2017, §3.2; grouped queries: Ainslie et al. 2023, "GQA", §2.2.
    """
    q = tap("q", _biased(query(state, attention.W_Q), attention.b_Q))
    k = tap("k", _biased(query(state, attention.W_K), attention.b_K))
    v = tap("v", _biased(query(state, attention.W_V), attention.b_V))
    if config.rotary_width:
        q = tap("rot_q", rotary(positions, q, config.rotary_width, config.rotary_base))
        k = tap("rot_k", rotary(positions, k, config.rotary_width, config.rotary_base))
    if past is not None:
        past = remember(past, k, v, positions[0]) if len(positions) else past
        k, v = past.k.astype(q.dtype), past.v.astype(q.dtype)
    visible = jnp.arange(len(k), dtype=jnp.int32) <= positions[:, None]
    mix = KERNELS[compute.kernel]
    z = tap("z", mix(config, q, k, v, visible, tap))
    return _biased(write_heads(z, attention.W_O, tap), attention.b_O), past


def remember(
    past: Past, k: Float[Array, "t k h"], v: Float[Array, "t k h"], start: Int[Array, ""]
) -> Past:
    """The past with new keys and values written from row `start` on."""
    rows = (start, jnp.zeros_like(start), jnp.zeros_like(start))
    return Past(
        jax.lax.dynamic_update_slice(past.k, k.astype(past.k.dtype), rows),
        jax.lax.dynamic_update_slice(past.v, v.astype(past.v.dtype), rows),
    )


def mix_einsum(
    config: Config,
    q: Float[Array, "t n h"],
    k: Float[Array, "s k h"],
    v: Float[Array, "s k h"],
    visible: Bool[Array, "t s"],
    tap: Tap,
) -> Float[Array, "t n h"]:
    """softmax(q·k · scale) · v for each head, written out; the softmax in float32 or wider."""
    t, n, h = q.shape
    s, groups, _ = k.shape
    grouped = q.reshape(t, groups, n // groups, h)
    products = jnp.einsum("tkgh,skh->kgts", grouped, k, preferred_element_type=wide(q.dtype))
    scores = products.reshape(n, t, s) * config.score_scale
    scores = tap("scores", jnp.where(visible, scores, -jnp.inf))
    pattern = tap("pattern", jax.nn.softmax(scores, axis=-1).astype(q.dtype))
    shares = pattern.reshape(groups, n // groups, t, s)
    return jnp.einsum("kgts,skh->tkgh", shares, v).reshape(t, n, h)


def mix_fused(
    config: Config,
    q: Float[Array, "t n h"],
    k: Float[Array, "s k h"],
    v: Float[Array, "s k h"],
    visible: Bool[Array, "t s"],
    tap: Tap,
) -> Float[Array, "t n h"]:
    """The same by `jax.nn.dot_product_attention`, which keeps scores and pattern to itself.

    Raises:
        ValueError: float64, which it would round to float32; an edit of the scores or the pattern.
    """
    if q.dtype == jnp.float64:
        raise ValueError('kernel="fused" rounds float64 to float32; use Compute(kernel="einsum")')
    unseen = jnp.zeros((q.shape[1], q.shape[0], k.shape[0]), q.dtype)
    for site in ("scores", "pattern"):
        tap.refuse(site, unseen, 'which kernel="fused" never forms; use Compute(kernel="einsum")')
    return jax.nn.dot_product_attention(q, k, v, mask=visible[None], scale=config.score_scale)


KERNELS = {"einsum": mix_einsum, "fused": mix_fused}


def write_heads(
    z: Float[Array, "t n h"], W_O: Float[Array, "n h d"], tap: Tap
) -> Float[Array, "t d"]:
    """The sum of what the heads write. Each head's own part is formed only where it is asked for."""
    each = jnp.einsum("tnh,nhd->tnd", z, W_O)
    shown = tap("head_out", each)
    if shown is each and "head_out" not in tap.capture:
        return jnp.einsum("tnh,nhd->td", z, W_O)  # `each` has no reader: the compiler drops it
    return shown.sum(axis=1)


def _biased(
    values: Float[Array, "t *features"], bias: Float[Array, "*features"] | None
) -> Float[Array, "t *features"]:
    return values if bias is None else values + bias
