"""What a run costs in arithmetic and in memory traffic, and how fast this device does either."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.device import Device
from benchmarks.timing import interleave, summarize
from jaxformer.config import Config
from jaxformer.params import count


def forward_flops(config: Config, context: int, past: int = 0) -> int:
    """Floating-point operations of one sequence's forward pass: two per multiply-add of every matrix product.

    Attention is counted as computed, the masked half included, over `past + context` keys. Norms, softmax,
    positions and activations are left out, as is usual: they are below 2 % at the sizes benchmarked.
    """
    size = config.sizes
    d, heads, kv = size["d"], size["n"] * size["h"], size["k"] * size["h"]
    projections = d * heads + 2 * d * kv + heads * d
    mixing = 2 * (past + context) * heads
    mlp = (3 if config.gated else 2) * d * size["f"]
    per_token = size["l"] * (projections + mixing + mlp) + d * size["v"]
    return 2 * context * per_token


def train_flops(config: Config, context: int) -> int:
    """Of a training step: the backward pass has two products for each one of the forward pass."""
    return 3 * forward_flops(config, context)


def forward_bytes(config: Config, batch: int, context: int, itemsize: int) -> int:
    """The least memory traffic of a batch: every parameter read once, the float32 logits written once."""
    return count(config) * itemsize + batch * context * config.n_vocab * 4


class Ceilings(NamedTuple):
    """What this device reached in this run; the datasheet's peak where the device is a known one."""

    matmul: float  # FLOP/s
    copy: float  # bytes/s, read and written
    peak: float | None  # FLOP/s

    def bound(self, flops: int, traffic: int) -> float:
        """The seconds that this much work takes at the ceilings: a roofline (Williams et al. 2009)."""
        return max(flops / self.matmul, traffic / self.copy)


def measure(device: Device, dtype: Any, repeats: int = 7) -> Ceilings:
    """All ceilings of the default device, which must be this one."""
    rates = matmul_rate(dtype, repeats=repeats), copy_rate(repeats=repeats)
    return Ceilings(*rates, peak(device.device_kind, dtype))


def matmul_rate(dtype: Any, sizes: tuple[int, ...] = (1024, 2048, 3072), repeats: int = 7) -> float:
    """The best median rate of square matrix products, in FLOP/s; narrow ones also with a float32 result."""

    def product(size: int, result: Any) -> Callable[[], Any]:
        a, b = (jax.random.normal(jax.random.key(i), (size, size)).astype(dtype) for i in range(2))
        multiply = jax.jit(partial(jnp.matmul, preferred_element_type=result))
        return lambda: multiply(a, b)

    results = {jnp.dtype(dtype), jnp.promote_types(dtype, jnp.float32)}
    products = {f"{size} {to}": product(size, to) for size in sizes for to in results}
    times = interleave(products, repeats=repeats)
    return max(2 * int(name.split()[0]) ** 3 / summarize(t).median for name, t in times.items())


def copy_rate(size: int = 2**28, repeats: int = 7) -> float:
    """The median rate of adding one to a large array in place, in bytes read and written per second."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(size // 4, jnp.int32)]

    def once() -> Any:
        held[0] = add(held[0])
        return held[0]

    return 2 * size / summarize(interleave({"copy": once}, repeats=repeats)["copy"]).median


PEAKS: dict[str, float] = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense bfloat16 FLOP/s by JAX's device_kind, from the makers' datasheets."""


def peak(device_kind: str, dtype: Any) -> float | None:
    """The datasheet's rate, or None: no guess for another device or dtype."""
    return PEAKS.get(device_kind) if jnp.dtype(dtype) == jnp.bfloat16 else None
