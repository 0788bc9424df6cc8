"""The roofline: the memory traffic of a run, and the measured matmul and copy rates of this device."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.device import Device
from benchmarks.timing import interleave, summarize
from jaxformer.config import Config
from jaxformer.model.params import count
from train.plan.hardware import HARDWARE


def forward_bytes(config: Config, batch: int, context: int, itemsize: int) -> int:
    """Return the least memory traffic of a batch: read every parameter once, write the float32 logits once."""
    return count(config) * itemsize + batch * context * config.n_vocab * 4


class Ceilings(NamedTuple):
    """The rates that this device reached in this run, and the datasheet's peak if the device is known."""

    matmul: float  # FLOP/s
    copy: float  # bytes/s, read and written
    peak: float | None  # FLOP/s

    def bound(self, flops: int, traffic: int) -> float:
        """Return the least seconds for this work at the ceilings: the roofline (Williams et al. 2009)."""
        return max(flops / self.matmul, traffic / self.copy)


def measure(device: Device, dtype: Any, repeats: int = 7) -> Ceilings:
    """Measure the ceilings of this device, which must be the default device."""
    rates = matmul_rate(dtype, repeats=repeats), copy_rate(repeats=repeats)
    return Ceilings(*rates, peak(device.device_kind, dtype))


def matmul_rate(dtype: Any, sizes: tuple[int, ...] = (1024, 2048, 3072), repeats: int = 7) -> float:
    """Return the best median rate of square matrix products, in FLOP/s; narrow dtypes also with float32 results."""

    def product(size: int, result: Any) -> Callable[[], Any]:
        a, b = (jax.random.normal(jax.random.key(i), (size, size)).astype(dtype) for i in range(2))
        multiply = jax.jit(partial(jnp.matmul, preferred_element_type=result))
        return lambda: multiply(a, b)

    results = {jnp.dtype(dtype), jnp.promote_types(dtype, jnp.float32)}
    products = {f"{size} {to}": product(size, to) for size in sizes for to in results}
    times = interleave(products, repeats=repeats)
    return max(2 * int(name.split()[0]) ** 3 / summarize(t).median for name, t in times.items())


def copy_rate(size: int = 2**28, repeats: int = 7) -> float:
    """Return the median rate of adding 1 to a large array in place, in bytes read and written per second."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(size // 4, jnp.int32)]

    def once() -> Any:
        held[0] = add(held[0])
        return held[0]

    return 2 * size / summarize(interleave({"copy": once}, repeats=repeats)["copy"]).median


PEAKS: dict[str, float] = {kind: known.flops for known in HARDWARE for kind in known.device_kinds}
"""Dense bfloat16 FLOP/s by JAX's device_kind, from datasheets."""


def peak(device_kind: str, dtype: Any) -> float | None:
    """Return the datasheet's rate, or None for another device or dtype."""
    return PEAKS.get(device_kind) if jnp.dtype(dtype) == jnp.bfloat16 else None
