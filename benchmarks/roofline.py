"""What a forward pass costs in arithmetic, and how fast this device's arithmetic is."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import interleave
from jaxformer.config import Config


def forward_flops(config: Config, context: int) -> int:
    """Floating-point operations of one sequence's forward pass: two per multiply-add of every matrix product.

    Attention is counted as computed, the masked half included. Norms, softmax, positions and activations
    are left out, as is usual: they are below 2 % at the sizes benchmarked.
    """
    size = config.sizes
    d, heads, kv = size["d"], size["n"] * size["h"], size["k"] * size["h"]
    projections = d * heads + 2 * d * kv + heads * d
    mixing = 2 * context * heads
    mlp = (3 if config.gated else 2) * d * size["f"]
    per_token = size["l"] * (projections + mixing + mlp) + d * size["v"]
    return 2 * context * per_token


def matmul_rate(dtype: Any, sizes: tuple[int, ...] = (512, 1024, 2048), repeats: int = 10) -> float:
    """The best median rate of square matrix products on this device, in FLOP/s."""

    def product(size: int) -> Any:
        a, b = (jax.random.normal(jax.random.key(i), (size, size)).astype(dtype) for i in range(2))
        multiply = jax.jit(jnp.matmul)
        return lambda: multiply(a, b)

    timings = interleave({str(size): product(size) for size in sizes}, repeats=repeats)
    return max(2 * int(size) ** 3 / timing.median for size, timing in timings.items())
