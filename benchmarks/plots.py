"""The rows as a picture: a roofline, and bars of time relative to ours."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]
OURS, PEER, INK = "#c2410c", "#64748b", "#1e293b"


def draw(rows: list[Row], path: Path, caption: str) -> None:
    """Write the PNG.

    Raises:
        ValueError: rows with nothing to draw in them.
    """
    timed = [row for row in rows if "traffic" in row and "median" in row]
    if not timed:
        raise ValueError("--plot needs a forward, train-step or decode row; these have no roofline")
    groups = grouped(timed)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, max(4.5, 1.2 + 0.22 * len(timed))), layout="constrained")
        left, right = figure.subplots(1, 2)
        roofline(left, timed)
        bars(right, groups)
        figure.supxlabel(caption, fontsize=8, color=PEER)
        figure.savefig(path, dpi=150, format="png")


def grouped(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each race, by its label."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = f"{row['workload']} {row['size']} {row['batch']}×{row['seq']} {row['dtype']}"
        groups.setdefault(label, []).append(row)
    return groups


def roofline(axes: Axes, rows: list[Row]) -> None:
    """Achieved FLOP/s over arithmetic intensity, under the ceilings measured in the same run."""
    intensity = np.array([row["flops"] / row["traffic"] for row in rows])
    span = np.geomspace(min(intensity.min(), 1) / 2, max(intensity.max(), 100) * 2, 200)
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        row = next(row for row in rows if row["dtype"] == dtype)
        roof = np.minimum(span * row["copy_ceiling"], row["matmul_ceiling"])
        axes.plot(span, roof / 1e9, color=INK, linewidth=1)
        axes.annotate(
            f"matmul {dtype}", (span[-1], roof[-1] / 1e9), ha="right", va="bottom", fontsize=8
        )
    for row, x in zip(rows, intensity, strict=True):
        ours = row["implementation"] == "jaxformer"
        y = row["flops_per_second"] / 1e9
        axes.plot(
            x, y, "o" if ours else ".", color=OURS if ours else PEER, alpha=0.9 if ours else 0.5
        )
        if ours:
            axes.annotate(
                f"{row['workload']} {row['size']}",
                (x, y),
                fontsize=7,
                xytext=(4, -9),
                textcoords="offset points",
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte of least traffic",
        ylabel="GFLOP/s",
        title="Roofline",
    )
    axes.grid(True, which="major", alpha=0.2)


def bars(axes: Axes, groups: dict[str, list[Row]]) -> None:
    """Each implementation's time over ours, with quartiles; longer is slower."""
    place, ticks, labels = 0.0, [], []
    for label, rows in groups.items():
        axes.text(0, place, label, fontsize=8, fontweight="bold", va="center")
        place += 1
        for row in rows:
            middle, low, high = (row[f"time_over_ours{end}"] for end in ("", "_low", "_high"))
            color = OURS if row["implementation"] == "jaxformer" else PEER
            error = [[middle - low], [high - middle]]
            axes.barh(place, middle, height=0.75, color=color, xerr=error, ecolor=INK, capsize=2)
            axes.text(
                high,
                place,
                f" {middle:.2f} · {1e3 * row['median']:.3g} ms",
                fontsize=7,
                va="center",
            )
            ticks.append(place)
            labels.append(row["implementation"])
            place += 1
        place += 0.3
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set(
        xlabel="time / jaxformer's, pair by pair",
        title="Time relative to jaxformer (longer is slower)",
    )
