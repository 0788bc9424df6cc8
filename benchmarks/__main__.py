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
from benchmarks.contest import Setting
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
OWN: dict[str, dict[str, Any]] = {"patching": {"peers": ("lens",)}}
"""What one workload has for an option that is not given."""
SUITE_PEERS = ("flax-nnx", "torch", "torch-compile", "hf-sdpa")
"""One of each kind; `--peers` chooses others."""
SUITE: dict[str, dict[str, Any]] = {
    "forward": {"seconds": 6.0},
    "train-step": {"seconds": 4.0},
    "decode": {"seconds": 4.0, "sizes": ("baby", "char"), "batch": (1,)},
    "compile": {"depths": (4, 48), "lengths": (64, 1024), "repeats": 3},
    "parity": {"sizes": ("baby",)},
    "patching": {"seconds": 4.0, "sizes": ("baby",)},
}


def run(workload: str, options: Options, device: Device, out: Console) -> list[dict[str, Any]]:
    """One workload's rows, written to --json as they come, and its tables."""
    peers, facts = chosen(options.peers), about(device)
    heard: set[str] = set()

    def say(sentence: str) -> None:
        if sentence not in heard:
            heard.add(sentence)
            out.print(sentence, style="dim", highlight=False)

    every = []
    for dtype in ("float32",) if workload == "parity" else options.dtype:
        ceilings = measure(device, dtype)
        setting = Setting(options, device, dtype, ceilings, peers, say)
        rows = []
        for case in selected(workload, options):
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
                keep(rows[-1], options)
        title = workload if workload == "parity" else f"{workload}, {dtype}"
        out.print(table(workload, rows, title))
        if workload != "parity":
            out.print(summary(ceilings, dtype), highlight=False)
        every += rows
    return every


def selected(workload: str, options: Options) -> Any:
    """The cases that the options name, or the workload's own."""
    own = DEFAULT_SIZES[workload] if options.config is None else ()
    for case in cases(
        options.sizes or own, config=options.config, changes=options.set,
        batch=options.batch, seq=options.seq,
    ):  # fmt: skip
        if workload == "decode":
            yield from decode.prompted(case, options)
        elif workload == "patching":
            yield from patching.prompted(case, options)
        else:
            yield case


def unless_given(options: Options, own: dict[str, Any]) -> Options:
    """The options with the suite's own values in the place of defaults."""
    plain = Options()
    free = {
        name: value for name, value in own.items() if getattr(options, name) == getattr(plain, name)
    }
    return dataclasses.replace(options, **free)


def keep(row: dict[str, Any], options: Options) -> None:
    """Add one JSON line."""
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=str) + "\n")


def summary(ceilings: Ceilings, dtype: str) -> str:
    """The ceilings in one line."""
    peak = "" if ceilings.peak is None else f"; datasheet peak {ceilings.peak / 1e12:.0f} TFLOP/s"
    return (
        f"measured in this run: matmul {ceilings.matmul / 1e9:,.0f} GFLOP/s ({dtype}), "
        f"copy {ceilings.copy / 1e9:.0f} GB/s{peak}"
    )


def main(args: list[str] | None = None) -> int:
    """The command line; the exit status."""
    options = tyro.cli(Options, prog="python -m benchmarks", args=args)
    out = Console(width=None if sys.stdout.isatty() else 150)
    try:
        options.check()
        device = choose(options.device)
        chosen(options.peers)
        plan = {options.workload: OWN.get(options.workload, {})}
        if options.workload == "suite":
            plan = {
                name: {"peers": SUITE_PEERS} | OWN.get(name, {}) | own
                for name, own in SUITE.items()
            }
        rows = []
        with jax.default_device(device):
            for workload, own in plan.items():
                rows += run(workload, unless_given(options, own), device, out)
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
