"""What a run shows: its progress while it lasts; a table, a curve and two texts at its end."""

import math
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table


def progress_bar(console: Console) -> Progress:
    """Steps done, training loss, tokens per second, time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=console,
    )


def yardstick_table(
    losses: dict[str, float], model: dict[str, float], characters_per_token: float
) -> Table:
    """Losses on the validation split, the model's beside those of counting n-grams."""
    table = Table(title="loss on the whole validation split")
    table.add_column("")
    table.add_column("nats per token", justify="right")
    table.add_column("bits per character", justify="right")
    for name, loss in (losses | model).items():
        bits = loss / math.log(2) / characters_per_token
        style = "bold" if name in model else None
        table.add_row(name, f"{loss:.3f}", f"{bits:.3f}", style=style)
    return table


def plot_losses(
    path: Path, lines: list[dict[str, int | float]], yardsticks: dict[str, float]
) -> None:
    """The loss curve as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for key, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            marker = "o" if key == "validation_loss" else None
            axes.plot(*zip(*points, strict=True), label=label, marker=marker)
    for name, loss in yardsticks.items():
        axes.axhline(loss, color="grey", linewidth=0.8, linestyle="--")
        axes.annotate(
            name,
            (0.995, loss),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color="grey",
        )
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend(loc="center right")
    figure.savefig(path)
