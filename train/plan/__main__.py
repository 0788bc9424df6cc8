"""Predict memory and time of a training step: `python -m train.plan PRESET --mesh data=8,fsdp=32`.

The step is compiled for virtual devices, as many as the mesh has, and no array is allocated.
"""

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from jaxformer.config import Config
from jaxformer.model.params import count
from train.devices.layout import lay_out, pretend
from train.devices.mesh_options import parse_mesh
from train.plan.hardware import HARDWARE, Hardware, assumptions, find_hardware, step_seconds
from train.plan.memory import Plan, plan
from train.recipe import Recipe
from train.start import open_vocabulary, read_command, recipe_of

MOST = 8192
"""The largest number of devices: virtual devices need memory too."""


@dataclass(frozen=True, kw_only=True)
class Command(Recipe):
    """A Recipe, and the devices to run it on."""

    mesh: str = "data=1"
    """mesh of devices, such as data=8,fsdp=32"""
    rules: tuple[str, ...] = ()
    """sharding rules, as in python -m train"""
    vocab: int | None = None
    """vocabulary size; None: that of the preset, or of the tokenizer of the corpus"""
    hardware: tuple[str, ...] = ()
    """accelerators to estimate the step time for, such as h100; without this option: all known ones"""


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = sys.argv[1:] if args is None else args
    out = Console(width=None if sys.stdout.isatty() else 110)
    try:
        command = read_command(Command, "python -m train.plan", args)
        hardware = [find_hardware(name) for name in command.hardware] or [*HARDWARE]
        number = math.prod(parse_mesh(command.mesh).values())
        layout = lay_out(command.mesh, command.rules, pretended(number))
        recipe = recipe_of(command)
        config = planned_config(command)
        found = plan(recipe, config, layout)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    out.print(
        f"{count(config):,} parameters on {command.mesh}: {number:,} device{'s' * (number > 1)}; a step is "
        f"{recipe.batch:,} sequences of {recipe.context:,} tokens",
        highlight=False,
    )  # fmt: skip
    out.print(memory_table(found))
    kinds = ", ".join(f"{number} {kind}" for kind, number in found.collectives.items()) or "none"
    once = "collectives in the program's text (a loop's body counts once)"
    out.print(f"  {once}: {kinds}", highlight=False, soft_wrap=True)
    out.print(
        f"  matrix products of one device: {rounded(found.flops)}FLOP, of the model's formula "
        f"{rounded(found.model_flops)}FLOP",
        highlight=False,
    )
    out.print(time_table(found, hardware, recipe.seeds * recipe.batch * recipe.context))
    for note in notes(recipe, hardware):
        out.print(f"- {note}", highlight=False, soft_wrap=True)
    return 0


def planned_config(command: Command) -> Config:
    """Return the Config with a vocabulary size, without downloading a text.

    Raises:
        ValueError: the vocabulary size is unknown.
    """
    if command.vocab is not None:
        if command.vocab < 1:
            raise ValueError(f"vocab={command.vocab} must be at least 1")
        return replace(command.config, n_vocab=command.vocab)
    if command.config.n_vocab > 1:
        return command.config
    if command.corpus == "shakespeare":
        raise ValueError(
            "the vocabulary size depends on the text; give --vocab (65 for shakespeare)"
        )
    try:
        return open_vocabulary(recipe_of(command))
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}; or give --vocab, which needs no text") from error


def pretended(number: int) -> list[Any]:
    """Return this many virtual devices of the CPU.

    Raises:
        ValueError: there are too many, or JAX is already initialized with fewer.
    """
    if number > MOST:
        raise ValueError(f"{number} devices are too many to simulate; plan for at most {MOST}")
    jax.config.update("jax_platforms", "cpu")
    pretend(number)
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise ValueError(
            f"JAX is already initialized with {len(devices)} devices; plan for {number} in a new process"
        )
    return devices[:number]


def memory_table(found: Plan) -> Table:
    """Return a table of the memory of one device."""
    table = Table(title="memory of one device", box=box.SIMPLE)
    table.add_column("")
    table.add_column("MB", justify="right")
    for name, size in (
        ("parameters", found.parameters),
        ("optimizer", found.optimizer),
        ("batch", found.batch),
        ("temporaries", found.temporaries),
        ("in all", found.memory),
    ):
        table.add_row(name, f"{size / 1e6:,.1f}")
    return table


def time_table(found: Plan, hardware: list[Hardware], tokens: int) -> Table:
    """Return a table of lower bounds of the step time on each accelerator."""
    table = Table(title="a step takes at least", box=box.SIMPLE)
    for name in (
        "device",
        "of its memory",
        "compute s",
        "memory s",
        "seconds",
        "tokens/s, at most",
    ):
        table.add_column(name, justify="right" if name != "device" else "left")
    for device in hardware:
        bound = step_seconds(device, found.flops, found.traffic)
        share = found.memory / device.memory
        table.add_row(
            device.name,
            f"{share:.0%}" + (" too much" if share > 1 else ""),
            *(f"{seconds:.3g}" for seconds in (*bound, bound.least)),
            rounded(tokens / bound.least),
        )
    return table


def rounded(number: int | float) -> str:
    """Round to three digits with a metric prefix.

    >>> rounded(1_085_718), rounded(64_000), rounded(7)
    ('1.09 M', '64 k', '7')
    """
    for size, letter in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def notes(recipe: Recipe, hardware: list[Hardware]) -> list[str]:
    """Return the assumptions behind the numbers, as sentences."""
    sentences = [
        "Temporaries are those of XLA's CPU program; other compilers fuse and schedule differently.",
        "Seconds are the longer of compute and memory. The time for communication is not included.",
    ]
    if recipe.compute.kernel == "fused":
        sentences.append(
            'kernel="fused" is compiled without cuDNN here, so the scores of a layer are materialized.'
        )
    if recipe.compute.dtype in ("bfloat16", "float16"):
        sentences.append("XLA for CPU stores some bfloat16 arrays as float32.")
    if len(hardware) == 1:
        return sentences + assumptions(hardware[0])
    return [*sentences, "Matrix products run at the datasheet's peak of dense bfloat16."]


if __name__ == "__main__":
    sys.exit(main())
