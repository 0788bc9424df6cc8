"""Ways to compute attention: from queries, keys and values to what each head reads; and the mask between them."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxformer.config import Config
from jaxformer.model.stream import capped, product, wide
from jaxformer.model.tap import Tap


def visible(
    config: Config, layer: Int[Array, ""], positions: Int[Array, " t"], theirs: Int[Array, " s"]
) -> Bool[Array, "t s"]:
    """Which position may look at which: at none after it, and at none before the window, if the layer has it.

    Source: the window: Beltagy et al. 2020, "Longformer", §3.1.
    """
    back = positions[:, None] - theirs
    if config.window is None:
        return back >= 0
    within = back < config.window
    if config.horizon is None:
        within |= ~jnp.array(config.local_layers)[layer]
    return (back >= 0) & within & (theirs >= 0)


def mix_einsum(
    config: Config,
    q: Float[Array, "n t h"],
    k: Float[Array, "k s h"],
    v: Float[Array, "k s h"],
    visible: Bool[Array, "t s"],
    tap: Tap,
    *,
    aligned: bool,
) -> Float[Array, "n t h"]:
    """softmax(q·k · scale) · v for each head, written out; the softmax in float32 or wider.

    In the order of axes in which XLA runs it as one fusion on CPU, with no copies between.
    """
    del aligned
    (n, t, h), (groups, s, _) = q.shape, k.shape
    products = product("kqh,ksh->kqs", q.reshape(groups, n // groups * t, h), k).reshape(n, t, s)
    # Added, not chosen by: XLA fuses an addition into the products on CPU, a choice it does not.
    mask = jnp.where(visible, 0.0, -jnp.inf).astype(products.dtype)
    scores = tap("scores", capped(products * config.score_scale, config.attention_cap) + mask)
    pattern = tap("pattern", softmax(scores).astype(q.dtype))
    z = product("kqs,ksh->kqh", pattern.reshape(groups, n // groups * t, s), v)
    return z.astype(q.dtype).reshape(n, t, h)


def mix_blocked(
    config: Config,
    q: Float[Array, "n t h"],
    k: Float[Array, "k s h"],
    v: Float[Array, "k s h"],
    visible: Bool[Array, "t s"],
    tap: Tap,
    *,
    aligned: bool,
) -> Float[Array, "n t h"]:
    """The same for one block of queries after another: what comes after a block is never computed.

    Raises:
        ValueError: an edit of the scores or the pattern.
    """
    _refuse_unformed("blocked", q, k, tap)
    mixed = []
    for rows in query_blocks(q.shape[1]):
        oldest = 0 if config.horizon is None else max(rows.start - config.horizon + 1, 0)
        seen = slice(oldest, rows.stop) if aligned else slice(None)
        part = q[:, rows], k[:, seen], v[:, seen]
        mixed.append(mix_einsum(config, *part, visible[rows, seen], Tap(), aligned=aligned))
    return jnp.concatenate(mixed, axis=1)


def mix_fused(
    config: Config,
    q: Float[Array, "n t h"],
    k: Float[Array, "k s h"],
    v: Float[Array, "k s h"],
    visible: Bool[Array, "t s"],
    tap: Tap,
    *,
    aligned: bool,
) -> Float[Array, "n t h"]:
    """The same by `jax.nn.dot_product_attention`, which keeps scores and pattern to itself.

    On CUDA, in bfloat16 or float16 and without a cache, it is cuDNN's flash attention.

    Raises:
        ValueError: float64, which it would round to float32; attention_cap, which it does not have; an edit of
            the scores or the pattern.
    """
    if q.dtype == jnp.float64:
        raise ValueError('kernel="fused" rounds float64 to float32; use Compute(kernel="einsum")')
    if config.attention_cap is not None:
        raise ValueError('kernel="fused" has no attention_cap; use Compute(kernel="einsum")')
    _refuse_unformed("fused", q, k, tap)
    q, k, v = by_head(q), by_head(k), by_head(v)
    causal = aligned and config.window is None
    visibility = {"is_causal": True} if causal else {"mask": visible[None]}
    attention = partial(jax.nn.dot_product_attention, scale=config.score_scale, **visibility)
    if not (causal and _cudnn_takes(q)):
        return by_head(attention(q, k, v))
    flash = partial(attention, implementation="cudnn")
    return by_head(jax.lax.platform_dependent(q, k, v, cuda=flash, default=attention))


def _cudnn_takes(q: Float[Array, "t n h"]) -> bool:
    """Narrow floats, on a machine with CUDA, in heads of a width that cuDNN knows."""
    narrow = wide(q.dtype) != q.dtype
    width_fits = q.shape[-1] <= 128 and q.shape[-1] % 8 == 0
    if not (narrow and width_fits and q.shape[0] and jax.default_backend() == "gpu"):
        return False
    return "cuda" in jax.devices("gpu")[0].client.platform_version


KERNELS = {"einsum": mix_einsum, "blocked": mix_blocked, "fused": mix_fused}
"""By name. `aligned` says that the key at s is that of the query at s: no cache, and all states ask."""


def query_blocks(length: int) -> list[slice]:
    """A sequence in up to four blocks of at least 128 positions; a long one in up to 16, of 1024 or more.

    More blocks skip more, but each costs: these were the fastest on CPU from 256 to 8192 positions.

    >>> query_blocks(300)
    [slice(0, 150, None), slice(150, 300, None)]
    """
    number = max(min(length // 128, 4), min(length // 1024, 16), 1)
    return [slice(length * i // number, length * (i + 1) // number) for i in range(number)]


@jax.custom_jvp
def softmax(scores: Float[Array, "*n t s"]) -> Float[Array, "*n t s"]:
    """exp(x_s) / Σ_s exp(x_s), with its own derivative: p·(ẋ - Σ_s p·ẋ).

    The derivative needs the result p alone; JAX's own keeps the exponentials as well.

    >>> softmax(jnp.zeros((1, 4)))
    Array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    return jax.nn.softmax(scores, axis=-1)


@softmax.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    pattern, change = softmax(*primals), tangents[0]
    return pattern, pattern * (change - (pattern * change).sum(axis=-1, keepdims=True))


def by_head(vectors: Float[Array, "t n h"]) -> Float[Array, "n t h"]:
    """Heads in front; it is its own inverse."""
    return vectors.transpose(1, 0, 2)


def _refuse_unformed(
    kernel: str, q: Float[Array, "n t h"], k: Float[Array, "k s h"], tap: Tap
) -> None:
    unseen = jnp.zeros((*q.shape[:2], k.shape[1]), q.dtype)
    for site in ("scores", "pattern"):
        tap.refuse(
            site, unseen, f'which kernel="{kernel}" never forms; use Compute(kernel="einsum")'
        )
