"""Accelerators by their datasheets, and a lower bound of the time of a step."""

from typing import NamedTuple


class Hardware(NamedTuple):
    """The datasheet of one accelerator."""

    name: str
    device_kinds: tuple[str, ...]
    """its names in JAX, as `device_kind`"""
    flops: float
    """peak rate of dense bfloat16 matrix products, per second"""
    memory: float
    """bytes"""
    memory_rate: float
    """bytes per second"""
    source: str
    """document with these numbers"""


HARDWARE: tuple[Hardware, ...] = (
    Hardware(
        "a100-40gb", ("NVIDIA A100-SXM4-40GB",), 312e12, 40e9, 1555e9,
        "NVIDIA A100 Tensor Core GPU Datasheet, A100 40GB SXM",
    ),
    Hardware(
        "a100-80gb", ("NVIDIA A100-SXM4-80GB",), 312e12, 80e9, 2039e9,
        "NVIDIA A100 Tensor Core GPU Datasheet, A100 80GB SXM",
    ),
    Hardware(
        "h100", ("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3350e9,
        "NVIDIA H100 Tensor Core GPU Datasheet, H100 SXM",
    ),
    Hardware(
        "h200", ("NVIDIA H200",), 989e12, 141e9, 4800e9,
        "NVIDIA H200 Tensor Core GPU Datasheet, H200 SXM",
    ),
    Hardware(
        "b200", ("NVIDIA B200",), 2250e12, 180e9, 7700e9,
        "NVIDIA Blackwell Datasheet, HGX B200, of one GPU",
    ),
    Hardware(
        "tpu-v4", ("TPU v4",), 275e12, 32 * 2**30, 1200e9,
        "Google Cloud documentation, TPU v4",
    ),
    Hardware(
        "tpu-v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16e9, 819e9,
        "Google Cloud documentation, TPU v5e",
    ),
    Hardware(
        "tpu-v5p", ("TPU v5p", "TPU v5"), 459e12, 95e9, 2765e9,
        "Google Cloud documentation, TPU v5p",
    ),
    Hardware(
        "tpu-v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32e9, 1638e9,
        "Google Cloud documentation, TPU v6e",
    ),
)  # fmt: skip
"""All known accelerators."""


def find_hardware(name: str) -> Hardware:
    """Return the accelerator with this name or `device_kind`.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    >>> find_hardware("TPU v5 lite").name
    'tpu-v5e'
    """
    for hardware in HARDWARE:
        if name in (hardware.name, *hardware.device_kinds):
            return hardware
    names = ", ".join(hardware.name for hardware in HARDWARE)
    raise ValueError(f"there is no hardware {name!r}; choose one of {names}")


class StepSeconds(NamedTuple):
    """The time that one device needs for each part of a step alone."""

    compute: float
    memory: float

    @property
    def least(self) -> float:
        """The lower bound: both parts run at the same time, and no device waits for another."""
        return max(self)


def step_seconds(hardware: Hardware, flops: float, memory_traffic: float) -> StepSeconds:
    """Return a lower bound of the time of a step, work divided by peak rate; see `assumptions`.

    Args:
        hardware: one device.
        flops: FLOPs of matrix products on one device.
        memory_traffic: bytes that one device reads and writes.

    Source: Williams et al. 2009, "Roofline".

    >>> spent = step_seconds(find_hardware("h100"), 989e12, 6700e9)
    >>> spent, spent.least
    (StepSeconds(compute=1.0, memory=2.0), 2.0)
    """
    return StepSeconds(flops / hardware.flops, memory_traffic / hardware.memory_rate)


def assumptions(hardware: Hardware) -> list[str]:
    """Return the assumptions of `step_seconds` as sentences.

    >>> print(assumptions(find_hardware("h100"))[0])
    Matrix products run at 989 TFLOP/s, the peak of dense bfloat16.
    """
    return [
        f"Matrix products run at {hardware.flops / 1e12:,.0f} TFLOP/s, the peak of dense bfloat16.",
        f"Memory is read and written at all of its {hardware.memory_rate / 1e9:,.0f} GB/s.",
        f"The rates are those of the datasheet: {hardware.source}.",
    ]
