"""The command line of the benchmarks: `python -m benchmarks forward`."""

import json
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import forward


@dataclass(frozen=True, kw_only=True)
class Command:
    """Time the jitted, vmapped forward pass beside this device's own matrix products."""

    workload: Annotated[Literal["forward"], tyro.conf.Positional] = "forward"
    """what to time"""
    sizes: tuple[str, ...] = tuple(forward.SIZES)
    """which sizes"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of stream and matrix products"""
    repeats: int = 10
    """timed calls of each; the median is reported"""
    json: Path | None = None
    """a file to add one JSON line per row to"""


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "numpy")},
    }


def table(rows: list[dict[str, Any]], dtype: str) -> Table:
    """The rows, for people."""
    sheet = Table(title=f"forward pass, {dtype}: medians", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("size", "batch × context", "ms", "quartiles", "tokens/s", "GFLOP/s", "of matmul"):
        sheet.add_column(name, justify="left" if name == "size" else "right", no_wrap=True)
    for row in rows:
        low, mid, high = (f"{1e3 * row[key]:.4g}" for key in ("low", "median", "high"))
        sheet.add_row(
            row["size"],
            f"{row['batch']} × {row['context']}",
            mid,
            f"{low}-{high}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['flops_per_second'] / 1e9:.1f}",
            f"{row['fraction_of_matmul']:.0%}",
        )
    return sheet


def main(args: list[str] | None = None) -> int:
    """The command line; the exit status."""
    command = tyro.cli(Command, prog="python -m benchmarks", args=args)
    try:
        if unknown := [name for name in command.sizes if name not in forward.SIZES]:
            raise ValueError(f"no size {unknown[0]!r}; choose from {', '.join(forward.SIZES)}")  # noqa: TRY301
        if command.repeats < 1:
            raise ValueError(f"repeats={command.repeats} must be at least 1")  # noqa: TRY301
        about = machine()
        rows = []
        for row in forward.measure(list(command.sizes), command.dtype, command.repeats):
            rows.append(row)
            if command.json is not None:
                with command.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row | about) + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    console.print(table(rows, command.dtype))
    rate = rows[0]["matmul_flops_per_second"] / 1e9 if rows else 0.0
    console.print(
        f"measured matmul rate {rate:.0f} GFLOP/s; {about['device']} ({about['platform']}), "
        f"jax {about['jax']}, Python {about['python']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
