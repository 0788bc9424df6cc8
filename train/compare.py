"""Compare runs: `python -m train.compare runs/a runs/b`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from train.metrics import Line, read_metrics
from train.runs import flat, read_about


@dataclass(frozen=True)
class Command:
    """Print a table of runs and their differences, and plot their losses together."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of the runs"""
    out: Path = Path("compare.png")
    """file for the plot"""


def read_run(folder: Path) -> tuple[dict[str, Any], list[Line]]:
    """Read the flattened run.json and the metrics of a run.

    Raises:
        ValueError: the folder is not that of a run, is damaged, or has no validation yet.
    """
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no run.json")
    lines = read_metrics(folder)
    if not any("validation_loss" in line for line in lines):
        raise ValueError(f"{folder} has no validation yet; let it run a little longer")
    return flat(read_about(folder / "run.json")), lines


def differences(abouts: dict[str, dict[str, Any]]) -> list[str]:
    """Return the fields whose values differ between the runs."""
    names = sorted({name for about in abouts.values() for name in about})
    return [n for n in names if len({repr(about.get(n)) for about in abouts.values()}) > 1]


def table(runs: dict[str, tuple[dict[str, Any], list[Line]]]) -> Table:
    """Return a table with one column per run: losses, steps, time, and the fields that differ."""
    rows = Table(title="runs")
    rows.add_column("")
    for name in runs:
        rows.add_column(escape(name), justify="right")
    every = {name: lines for name, (_, lines) in runs.items()}
    validations = {
        name: [line["validation_loss"] for line in lines if "validation_loss" in line]
        for name, lines in every.items()
    }
    rows.add_row("best validation loss", *(f"{min(v):.4f}" for v in validations.values()))
    rows.add_row("last validation loss", *(f"{v[-1]:.4f}" for v in validations.values()))
    rows.add_row("steps", *(str(lines[-1]["step"]) for lines in every.values()))
    seconds = (sum(line.get("seconds", 0.0) for line in lines) for lines in every.values())
    rows.add_row("seconds of training", *(f"{s:.1f}" for s in seconds))
    rows.add_section()
    abouts = {name: about for name, (about, _) in runs.items()}
    for field in differences(abouts):
        rows.add_row(
            field.removeprefix("recipe."), *(escape(str(a.get(field, ""))) for a in abouts.values())
        )
    return rows


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    command = tyro.cli(Command, prog="python -m train.compare", args=args)
    try:
        if not command.runs:
            raise ValueError("no run was given; name the folders of one or more")  # noqa: TRY301
        runs = {str(folder): read_run(folder) for folder in command.runs}
        from train.figures import write_comparison  # matplotlib takes a while

        write_comparison(command.out, {name: lines for name, (_, lines) in runs.items()})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Console().print(table(runs))
    print(f"the losses are plotted in {command.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
