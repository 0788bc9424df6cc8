"""What a run says: its progress while it lasts, a table at its end."""

import math

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


def loss_table(losses: dict[str, float], ours: str, characters_per_token: float | None) -> Table:
    """Losses on the validation split, the model's beside those of simpler and of perfect predictors."""
    table = Table(title="loss on the whole validation split")
    table.add_column("")
    table.add_column("nats per token", justify="right")
    if characters_per_token:
        table.add_column("bits per character", justify="right")
    for name, loss in losses.items():
        cells = [f"{loss:.3f}"]
        if characters_per_token:
            cells.append(f"{loss / math.log(2) / characters_per_token:.3f}")
        table.add_row(name, *cells, style="bold" if name == ours else None)
    return table
