"""Accelerators by their makers' datasheets, and how long a step would take on one at best and at worst."""

from typing import NamedTuple


class Hardware(NamedTuple):
    """One accelerator: what its maker says that it can do."""

    name: str
    device_kinds: tuple[str, ...]
    """what JAX calls it, as `device_kind`"""
    flops: float
    """of dense bfloat16 matrix products, per second"""
    memory: float
    """bytes"""
    memory_rate: float
    """bytes per second"""
    link_rate: float
    """bytes per second that it can send to others of its kind, over all links together"""
    source: str
    """whose numbers these are; of a rate in both directions together, link_rate is half"""


HARDWARE: tuple[Hardware, ...] = (
    Hardware(
        "a100-40gb", ("NVIDIA A100-SXM4-40GB",), 312e12, 40e9, 1555e9, 300e9,
        "NVIDIA A100 Tensor Core GPU Datasheet, A100 40GB SXM; 600 GB/s NVLink in both directions",
    ),
    Hardware(
        "a100-80gb", ("NVIDIA A100-SXM4-80GB",), 312e12, 80e9, 2039e9, 300e9,
        "NVIDIA A100 Tensor Core GPU Datasheet, A100 80GB SXM; 600 GB/s NVLink in both directions",
    ),
    Hardware(
        "h100", ("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3350e9, 450e9,
        "NVIDIA H100 Tensor Core GPU Datasheet, H100 SXM; 900 GB/s NVLink in both directions",
    ),
    Hardware(
        "h200", ("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9,
        "NVIDIA H200 Tensor Core GPU Datasheet, H200 SXM; 900 GB/s NVLink in both directions",
    ),
    Hardware(
        "b200", ("NVIDIA B200",), 2250e12, 180e9, 7700e9, 900e9,
        "NVIDIA Blackwell Datasheet, HGX B200, of one GPU; 1.8 TB/s NVLink in both directions",
    ),
    Hardware(
        "tpu-v4", ("TPU v4",), 275e12, 32 * 2**30, 1200e9, 300e9,
        "Google Cloud documentation, TPU v4; links: Jouppi et al. 2023, \"TPU v4\", 6 of 50 GB/s",
    ),
    Hardware(
        "tpu-v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16e9, 819e9, 200e9,
        "Google Cloud documentation, TPU v5e; 400 GB/s ICI in both directions",
    ),
    Hardware(
        "tpu-v5p", ("TPU v5p", "TPU v5"), 459e12, 95e9, 2765e9, 600e9,
        "Google Cloud documentation, TPU v5p; 1200 GB/s ICI in both directions",
    ),
    Hardware(
        "tpu-v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32e9, 1638e9, 400e9,
        "Google Cloud documentation, TPU v6e; 800 GB/s ICI in both directions",
    ),
)  # fmt: skip
"""Those that we have a maker's numbers for."""


def find_hardware(name: str) -> Hardware:
    """The accelerator of this name of ours, or of this `device_kind` of JAX's.

    Raises:
        ValueError: none of ours; the sentence lists them.

    >>> find_hardware("TPU v5 lite").name
    'tpu-v5e'
    """
    for hardware in HARDWARE:
        if name in (hardware.name, *hardware.device_kinds):
            return hardware
    names = ", ".join(hardware.name for hardware in HARDWARE)
    raise ValueError(f"no hardware {name!r}; choose one of {names}")


class StepSeconds(NamedTuple):
    """How long one device is busy with each part of a step, if it does nothing else meanwhile."""

    compute: float
    memory: float
    communication: float

    @property
    def overlapped(self) -> float:
        """Of the whole step, if all parts go on at the same time: the longest of them."""
        return max(self)

    @property
    def serial(self) -> float:
        """Of the whole step, if no two parts ever do: their sum."""
        return sum(self)


EFFICIENCY = 0.5
"""The share of the datasheet's FLOP/s that matrix products reach, where nobody says another."""


def step_seconds(
    hardware: Hardware,
    flops: int | float,
    memory_traffic_bytes: int | float,
    sent_bytes: int | float,
    efficiency: float = EFFICIENCY,
) -> StepSeconds:
    """What a step takes by the datasheet: work over rate, for each part of it; `assumptions` says what that leaves out.

    Args:
        hardware: what one device is.
        flops: of matrix products, by one device.
        memory_traffic_bytes: that one device reads and writes.
        sent_bytes: that one device sends to others.
        efficiency: the share of the datasheet's FLOP/s that matrix products reach.

    Raises:
        ValueError: an efficiency that is no share.

    Source: Williams et al. 2009, "Roofline"; with communication: Austin et al. 2025, "How to Scale Your Model", ch. 1.

    >>> spent = step_seconds(find_hardware("h100"), 989e12, 3350e9, 45e9)
    >>> spent
    StepSeconds(compute=2.0, memory=1.0, communication=0.1)
    >>> spent.overlapped, spent.serial
    (2.0, 3.1)
    """
    if not 0 < efficiency <= 1:
        raise ValueError(
            f"efficiency={efficiency} is no share of the peak; choose a number above 0 and up to 1"
        )
    return StepSeconds(
        flops / (efficiency * hardware.flops),
        memory_traffic_bytes / hardware.memory_rate,
        sent_bytes / hardware.link_rate,
    )


def assumptions(hardware: Hardware, efficiency: float = EFFICIENCY) -> list[str]:
    """What `step_seconds` takes for granted, in sentences to print beside its numbers.

    >>> print(assumptions(find_hardware("h100"))[0])
    Matrix products run at 50% of 989 TFLOP/s, the peak of dense bfloat16.
    """
    return [
        f"Matrix products run at {efficiency:.0%} of {hardware.flops / 1e12:,.0f} TFLOP/s, the peak of dense "
        "bfloat16.",
        f"Memory is read and written at all of its {hardware.memory_rate / 1e9:,.0f} GB/s.",
        f"A device sends at all of its {hardware.link_rate / 1e9:,.0f} GB/s, on all links at once and without "
        "any wait; a ring along one axis of a torus has only some of them.",
        "All devices of a group are in one domain of such links; between domains the network is slower.",
        f"The rates are those of the datasheet: {hardware.source}.",
    ]
