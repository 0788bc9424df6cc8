"""Other ways to compute attention than the written-out einsum: in blocks of queries, or fused by the backend.

Each agrees with `attention.einsum_attention` within rounding, and none shows the scores or the pattern.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxformer.config import Config
from jaxformer.model.stream import accumulation_dtype
from jaxformer.model.tap import Tap

Kernel = Callable[..., Float[Array, "k g t h"]]


def in_blocks(kernel: Kernel) -> Kernel:
    """Run a kernel on one block of queries after another, without the keys that come after a block."""

    def blocked_attention(
        config: Config, q: Float[Array, "k g t h"], k: Float[Array, "k s h"], v: Float[Array, "k s h"],
        mask: Bool[Array, "t s"], tap: Tap, *, causal: bool,
    ) -> Float[Array, "k g t h"]:  # fmt: skip
        _refuse_hidden_sites("blocked", mask, q, tap)
        mixed = []
        for rows in query_blocks(len(mask)):
            lookback = config.max_lookback
            oldest = 0 if lookback is None else max(rows.start - lookback + 1, 0)
            keys = slice(oldest, rows.stop) if causal else slice(None)
            part = q[:, :, rows], k[:, keys], v[:, keys], mask[rows, keys]
            mixed.append(kernel(config, *part, Tap(), causal=causal))
        return jnp.concatenate(mixed, axis=2)

    return blocked_attention


def fused_attention(
    config: Config, q: Float[Array, "k g t h"], k: Float[Array, "k s h"], v: Float[Array, "k s h"],
    mask: Bool[Array, "t s"], tap: Tap, *, causal: bool,
) -> Float[Array, "k g t h"]:  # fmt: skip
    """Run `jax.nn.dot_product_attention`, which is cuDNN's flash attention on CUDA in 16 bits, without cache or window.

    Raises:
        ValueError: float64, which it would round to float32; attention_soft_cap, which it does not have; an edit
            of the scores or the pattern.
    """
    if q.dtype == jnp.float64:
        raise ValueError('kernel="fused" rounds float64 to float32; use Compute(kernel="einsum")')
    if config.attention_soft_cap is not None:
        raise ValueError(
            f'kernel="fused" cannot compute attention_soft_cap={config.attention_soft_cap}; '
            'use Compute(kernel="einsum")'
        )
    _refuse_hidden_sites("fused", mask, q, tap)
    heads = q.reshape(q.shape[0] * q.shape[1], *q.shape[2:])
    vectors = [x.swapaxes(0, 1) for x in (heads, k, v)]
    causal = causal and config.window is None
    visibility = {"is_causal": True} if causal else {"mask": mask[None]}
    attention = partial(jax.nn.dot_product_attention, scale=config.score_scale, **visibility)
    if causal and _cudnn_takes(q):
        flash = partial(attention, implementation="cudnn")
        z = jax.lax.platform_dependent(*vectors, cuda=flash, default=attention)
    else:
        z = attention(*vectors)
    return z.swapaxes(0, 1).reshape(q.shape)


def _cudnn_takes(q: Float[Array, "k g t h"]) -> bool:
    """Whether cuDNN has flash attention for this dtype and head width, on a machine with CUDA."""
    narrow = accumulation_dtype(q.dtype) != q.dtype
    width_fits = q.shape[-1] <= 128 and q.shape[-1] % 8 == 0
    if not (narrow and width_fits and q.size and jax.default_backend() == "gpu"):
        return False
    return "cuda" in jax.devices("gpu")[0].client.platform_version


def query_blocks(length: int) -> list[slice]:
    """Cut a sequence into up to 4 blocks of at least 128 positions, a long one into up to 16 of at least 1024.

    More blocks skip more of the masked half, but each costs something: these numbers were the fastest on CPU from
    256 to 8192 positions.

    >>> query_blocks(300)
    [slice(0, 150, None), slice(150, 300, None)]
    """
    number = max(min(length // 128, 4), min(length // 1024, 16), 1)
    return [slice(length * i // number, length * (i + 1) // number) for i in range(number)]


def _refuse_hidden_sites(
    kernel: str, mask: Bool[Array, "t s"], q: Float[Array, "k g t h"], tap: Tap
) -> None:
    """Call the edit with a placeholder at the sites that are never computed, to find an edit that acts there."""
    unseen = jnp.zeros((q.shape[0] * q.shape[1], *mask.shape), q.dtype)
    for site in ("scores", "pattern"):
        if tap.edit(site, tap.layer, unseen) is not unseen:
            raise ValueError(
                f'the edit acts on {site!r}, which kernel="{kernel}" never computes; use Compute(kernel="einsum")'
            )
