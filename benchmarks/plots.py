"""The plots of --plot: a roofline, and bars of time relative to jaxformer."""

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
        ValueError: no row has a roofline.
    """
    timed = [row for row in rows if "traffic" in row and "median" in row]
    if not timed:
        raise ValueError("--plot needs a forward, train-step or decode row; these have no roofline")
    groups = group_by_case(timed)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, max(4.5, 1.2 + 0.22 * len(timed))), layout="constrained")
        left, right = figure.subplots(1, 2)
        roofline(left, timed)
        bars(right, groups)
        figure.supxlabel(caption, fontsize=8, color=PEER)
        figure.savefig(path, dpi=150, format="png")


def group_by_case(rows: list[Row]) -> dict[str, list[Row]]:
    """Group the rows by case; a label names each case."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = f"{row['workload']} {row['size']} {row['batch']}×{row['seq']} {row['dtype']}"
        groups.setdefault(label, []).append(row)
    return groups


def roofline(axes: Axes, rows: list[Row]) -> None:
    """Plot achieved FLOP/s by arithmetic intensity, under the ceilings measured in the same run."""
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
        xlabel="FLOP per byte of memory traffic (lower bound)",
        ylabel="GFLOP/s",
        title="Roofline",
    )
    axes.grid(True, which="major", alpha=0.2)


def bars(axes: Axes, groups: dict[str, list[Row]]) -> None:
    """Plot each implementation's time relative to jaxformer, with quartiles; longer is slower."""
    y, ticks, labels = 0.0, [], []
    for label, rows in groups.items():
        axes.text(0, y, label, fontsize=8, fontweight="bold", va="center")
        y += 1
        for row in rows:
            middle, low, high = (row[f"time_over_ours{end}"] for end in ("", "_low", "_high"))
            color = OURS if row["implementation"] == "jaxformer" else PEER
            error = [[middle - low], [high - middle]]
            axes.barh(y, middle, height=0.75, color=color, xerr=error, ecolor=INK, capsize=2)
            axes.text(
                high, y, f" {middle:.2f} · {1e3 * row['median']:.3g} ms", fontsize=7, va="center"
            )
            ticks.append(y)
            labels.append(row["implementation"])
            y += 1
        y += 0.3
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set(
        xlabel="time / time of jaxformer, round by round",
        title="Time relative to jaxformer (longer is slower)",
    )
