"""The tables that are printed on the terminal."""

from collections.abc import Callable
from typing import Any

from rich import box
from rich.table import Table

Row = dict[str, Any]


def milliseconds(row: Row) -> str:
    """Return median and quartiles in milliseconds."""
    if "median" not in row:
        return "not timed"
    return f"{1e3 * row['median']:.4g} ({1e3 * row['low']:.4g}-{1e3 * row['high']:.4g})"


def ratio(row: Row) -> str:
    """Return the ratio of a peer's time to jaxformer's; above 1, jaxformer is faster."""
    if row["implementation"] == "jaxformer":
        return "1"
    if not row["agrees"]:
        return f"DISAGREES by {row['difference']:.1e}"
    return f"{row['time_over_ours']:.2f} ({row['time_over_ours_low']:.2f}-{row['time_over_ours_high']:.2f})"


def spread(key: str, form: str) -> Callable[[Row], str]:
    """Return a column with a median and its quartiles, blank where a row has none."""

    def show(row: Row) -> str:
        if f"{key}_median" not in row:
            return ""
        middle, *ends = (format(row[f"{key}_{end}"], form) for end in ("median", "low", "high"))
        return f"{middle} ({'-'.join(ends)})"

    return show


def figure(key: str, form: str, scale: float = 1.0) -> Callable[[Row], str]:
    """Return a column with one number, blank where a row has none."""

    def show(row: Row) -> str:
        value = row.get(key)
        return "" if value is None else format(value * scale if scale != 1 else value, form)

    return show


def shape(row: Row) -> str:
    """Return batch size and sequence length."""
    return f"{row['batch']} × {row['seq']}"


def error(row: Row) -> str:
    """Return the error of a parity row, or a note that this device cannot run it."""
    return "not on this device" if "unsupported" in row else f"{row['error']:.1e}"


def cached(row: Row) -> str:
    """Return the dtype of a parity row's cache."""
    return row.get("cache", "none")


MILLISECONDS = {"ms (quartiles)": milliseconds}
COMPARISON: dict[str, Callable[[Row], str]] = {
    "size": figure("size", ""),
    "batch × seq": shape,
    "implementation": figure("implementation", ""),
    **MILLISECONDS,
    "time / ours": ratio,
    "tokens/s": figure("tokens_per_second", ",.0f"),
    "GFLOP/s": figure("flops_per_second", ",.0f", 1e-9),
    "of matmul": figure("of_matmul", ".0%"),
    "of roofline": figure("of_roofline", ".0%"),
    "compile s": figure("compile_seconds", ".2f"),
    "first s": figure("first_seconds", ".2f"),
    "MB": figure("peak_bytes", ",.0f", 1e-6),
}
COLUMNS: dict[str, dict[str, Callable[[Row], str]]] = {
    "forward": COMPARISON,
    "train-step": COMPARISON,
    "decode": {
        "size": figure("size", ""),
        "prompts": shape,
        "implementation": figure("implementation", ""),
        "ms / token": figure("token_median", ".3g", 1e3),
        "token / ours": spread("rest_over_ours", ".2f"),
        "first ms": figure("opening_median", ".4g", 1e3),
        "time / ours": ratio,
        "tokens/s": figure("tokens_per_second", ",.0f"),
        "of copy": figure("of_copy", ".0%"),
        "same": figure("same_tokens", ".0%"),
        "compile s": figure("compile_seconds", ".2f"),
        "MB": figure("peak_bytes", ",.0f", 1e-6),
    },
    "compile": {
        "size": figure("size", ""),
        "layers": figure("n_layers", ""),
        "batch × seq": shape,
        "trace s": figure("trace_seconds", ".3f"),
        "compile s": figure("compile_seconds", ".3f"),
        "/ first row": figure("compile_over_first", ".2f"),
        **MILLISECONDS,
        "tokens/s": figure("tokens_per_second", ",.0f"),
        "of matmul": figure("of_matmul", ".0%"),
        "peak MB": figure("peak_bytes", ",.0f", 1e-6),
    },
    "patching": {
        "size": figure("size", ""),
        "task": figure("task", ""),
        "prompts": shape,
        "implementation": figure("implementation", ""),
        "ms / patch": figure("patch_median", ".3g", 1e3),
        "time / ours": ratio,
        "patches": figure("patches", ""),
        "call ms": figure("median", ".4g", 1e3),
        "/ forward": figure("over_forward", ".2f"),
        "compile s": figure("compile_seconds", ".2f"),
        "held MB": figure("held_bytes", ",.0f", 1e-6),
        "budget MB": figure("budget_bytes", ",.0f", 1e-6),
    },
    "memory": {
        "size": figure("size", ""),
        "batch × seq": shape,
        "way": figure("way", ""),
        "held MB": figure("held_bytes", ",.1f", 1e-6),
        "/ plain": figure("held_over_plain", ".2f"),
        **MILLISECONDS,
        "time / plain": ratio,
        "tokens/s": figure("tokens_per_second", ",.0f"),
        "all MB": figure("peak_bytes", ",.0f", 1e-6),
    },
    "parity": {
        "size": figure("size", ""),
        "dtype": figure("compute_dtype", ""),
        "kernel": figure("kernel", ""),
        "precision": figure("precision", ""),
        "cache": cached,
        "largest error / largest logit": error,
        "same first choice": figure("argmax_agrees", ".2%"),
    },
}


TEXT_COLUMNS = ("size", "task", "way", "implementation", "dtype", "kernel", "precision", "cache")
"""The left-aligned columns, which hold text."""


def table(workload: str, rows: list[Row], title: str) -> Table:
    """Return a table of the rows of one workload."""
    sheet = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    columns = COLUMNS[workload]
    for name in columns:
        text = name in TEXT_COLUMNS
        sheet.add_column(name, justify="left" if text else "right", no_wrap=True)
    for row in rows:
        sheet.add_row(*(show(row) for show in columns.values()))
    return sheet
