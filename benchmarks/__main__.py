"""The command line of the benchmarks: `python -m benchmarks`."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tyro
from rich.console import Console

from benchmarks import decode, forward, growth, memory, parity, patching, train_step
from benchmarks.cases import cases
from benchmarks.comparison import Setting
from benchmarks.device import Device, about, choose
from benchmarks.options import Options
from benchmarks.peers import chosen
from benchmarks.plots import draw
from benchmarks.report import table
from benchmarks.roofline import Ceilings, measure

WORKLOADS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "forward": forward.rows,
    "train-step": train_step.rows,
    "decode": decode.rows,
    "compile": growth.rows,
    "parity": parity.rows,
    "patching": patching.rows,
    "memory": memory.rows,
}
DEFAULT_SIZES = {
    "forward": ("baby", "char", "gpt2-124m"),
    "train-step": ("baby",),
    "decode": ("baby", "char", "gpt2-124m"),
    "compile": ("baby",),
    "parity": ("baby", "char"),
    "patching": ("baby", "gpt2-124m"),
    "memory": ("gpt2-124m",),
}
WORKLOAD_DEFAULTS: dict[str, dict[str, Any]] = {"patching": {"peers": ("lens",)}}
"""Defaults of one workload that differ from those of Options."""
SUITE_PEERS = ("flax-nnx", "torch", "torch-compile", "hf-sdpa")
"""The peers of the suite, one of each kind."""
SUITE: dict[str, dict[str, Any]] = {
    "forward": {"seconds": 6.0},
    "train-step": {"seconds": 4.0},
    "decode": {"seconds": 4.0, "sizes": ("baby", "char"), "batch": (1,)},
    "compile": {"depths": (4, 48), "lengths": (64, 1024), "repeats": 3},
    "parity": {"sizes": ("baby",)},
    "patching": {"seconds": 4.0, "sizes": ("baby",)},
}


def run(workload: str, options: Options, device: Device, out: Console) -> list[dict[str, Any]]:
    """Run one workload: return its rows, append each to --json when it is measured, and print its tables."""
    peers, facts = chosen(options.peers), about(device)
    said: set[str] = set()

    def say(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            out.print(sentence, style="dim", highlight=False)

    all_rows = []
    for dtype in ("float32",) if workload == "parity" else options.dtype:
        ceilings = measure(device, dtype)
        setting = Setting(options, device, dtype, ceilings, peers, say)
        rows = []
        for case in selected_cases(workload, options):
            for row in WORKLOADS[workload](case, setting):
                named = {
                    "workload": workload,
                    "size": case.name,
                    "dtype": dtype,
                    "batch": case.batch,
                    "seq": case.seq,
                    "config": dataclasses.asdict(case.config),
                }
                rows.append(named | row | facts)
                append_row(rows[-1], options)
        title = workload if workload == "parity" else f"{workload}, {dtype}"
        out.print(table(workload, rows, title))
        if workload != "parity":
            out.print(summary(ceilings, dtype), highlight=False)
        all_rows += rows
    return all_rows


def selected_cases(workload: str, options: Options) -> Any:
    """Yield the cases that the options select, or the workload's default cases."""
    own = DEFAULT_SIZES[workload] if options.config is None else ()
    for case in cases(
        options.sizes or own, config=options.config, changes=options.set,
        batch=options.batch, seq=options.seq,
    ):  # fmt: skip
        if workload == "decode":
            yield from decode.decode_cases(case, options)
        elif workload == "patching":
            yield from patching.patching_cases(case, options)
        else:
            yield case


def with_defaults(options: Options, own: dict[str, Any]) -> Options:
    """Return the options, with other values where the user left a default."""
    plain = Options()
    changed = {
        name: value for name, value in own.items() if getattr(options, name) == getattr(plain, name)
    }
    return dataclasses.replace(options, **changed)


def append_row(row: dict[str, Any], options: Options) -> None:
    """Append a row to the --json file."""
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=str) + "\n")


def summary(ceilings: Ceilings, dtype: str) -> str:
    """Describe the ceilings in one line."""
    peak = "" if ceilings.peak is None else f"; datasheet peak {ceilings.peak / 1e12:.0f} TFLOP/s"
    return (
        f"measured in this run: matmul {ceilings.matmul / 1e9:,.0f} GFLOP/s ({dtype}), "
        f"copy {ceilings.copy / 1e9:.0f} GB/s{peak}"
    )


def main(args: list[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    options = tyro.cli(Options, prog="python -m benchmarks", args=args)
    out = Console(width=None if sys.stdout.isatty() else 150)
    try:
        options.check()
        device = choose(options.device)
        chosen(options.peers)
        plan = {options.workload: WORKLOAD_DEFAULTS.get(options.workload, {})}
        if options.workload == "suite":
            plan = {
                name: {"peers": SUITE_PEERS} | WORKLOAD_DEFAULTS.get(name, {}) | own
                for name, own in SUITE.items()
            }
        rows = []
        with jax.default_device(device):
            for workload, own in plan.items():
                rows += run(workload, with_defaults(options, own), device, out)
        facts = about(device)
        caption = (
            f"{facts['processor'] or facts['device']}, {facts['cores']} cores ({facts['platform']}); "
            f"jax {jax.__version__}, Python {facts['python']}"
        )
        out.print(caption, highlight=False)
        if options.plot is not None:
            draw(rows, options.plot, caption)
    except (ValueError, OSError, OverflowError, MemoryError, jax.errors.JaxRuntimeError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    sys.exit(main())
