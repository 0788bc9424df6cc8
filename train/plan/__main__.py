"""What a run would take, before anybody pays for it: `python -m train.plan PRESET --mesh data=8,fsdp=32`.

The step is compiled for as many devices as the mesh has, all of them pretended, and nothing is allocated.
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
from train.devices.layout import lay_out, parse_mesh, pretend
from train.plan.hardware import HARDWARE, Hardware, assumptions, find_hardware, step_seconds
from train.plan.memory import Plan, plan
from train.recipe import Recipe
from train.start import open_vocabulary, read_command, recipe_of

MOST = 8192
"""Devices that a plan can be made for: each takes memory here, pretended as it is."""


@dataclass(frozen=True, kw_only=True)
class Command(Recipe):
    """A Recipe, and the devices to run it on."""

    mesh: str = "data=1"
    """devices, as data=8,fsdp=32"""
    rules: tuple[str, ...] = ()
    """as of python -m train"""
    vocab: int | None = None
    """entries of the vocabulary; None: the preset's, or those of the corpus's tokenizer"""
    hardware: tuple[str, ...] = ()
    """accelerators to estimate the time of a step on, as h100; none given: all that there are numbers of"""


def main(args: list[str] | None = None) -> int:
    """The command line; the exit status."""
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
    """The architecture, with a vocabulary; no text is downloaded for its sake.

    Raises:
        ValueError: nothing tells the size of the vocabulary.
    """
    if command.vocab is not None:
        if command.vocab < 1:
            raise ValueError(f"vocab={command.vocab} must be at least 1")
        return replace(command.config, n_vocab=command.vocab)
    if command.config.n_vocab > 1:
        return command.config
    if command.corpus == "shakespeare":
        raise ValueError(
            "how large the vocabulary is depends on the text; give --vocab (shakespeare: 65)"
        )
    try:
        return open_vocabulary(recipe_of(command))
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}; or give --vocab, then no text is needed") from error


def pretended(number: int) -> list[Any]:
    """So many devices of a CPU that is cut into them, if JAX has not begun with another number.

    Raises:
        ValueError: it has, or there are more than it can pretend in reasonable memory.
    """
    if number > MOST:
        raise ValueError(f"{number} devices are too many to pretend; plan for at most {MOST}")
    jax.config.update("jax_platforms", "cpu")
    pretend(number)
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise ValueError(
            f"JAX has begun with {len(devices)} devices; a plan for {number} needs a new process"
        )
    return devices[:number]


def memory_table(found: Plan) -> Table:
    """Bytes of one device."""
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
    """What a step would take at least."""
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
        took = step_seconds(device, found.flops, found.traffic)
        share = found.memory / device.memory
        table.add_row(
            device.name,
            f"{share:.0%}" + (" too much" if share > 1 else ""),
            *(f"{seconds:.3g}" for seconds in (*took, took.least)),
            rounded(tokens / took.least),
        )
    return table


def rounded(number: int | float) -> str:
    """Three digits, and a thousand, a million or a billion as a letter.

    >>> rounded(1_085_718), rounded(64_000), rounded(7)
    ('1.09 M', '64 k', '7')
    """
    for size, letter in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def notes(recipe: Recipe, hardware: list[Hardware]) -> list[str]:
    """What the numbers take for granted."""
    said = [
        "Temporaries are those of XLA's program for CPU; other compilers fuse and schedule otherwise.",
        "Seconds: the longer of compute and memory. What devices wait for each other comes on top.",
    ]
    if recipe.compute.kernel == "fused":
        said.append(
            'kernel="fused" is compiled without cuDNN here: its scores are formed, a layer at a time.'
        )
    if recipe.compute.dtype in ("bfloat16", "float16"):
        said.append("XLA for CPU keeps some of bfloat16 as float32.")
    if len(hardware) == 1:
        return said + assumptions(hardware[0])
    return [*said, "Matrix products run at the datasheet's peak of dense bfloat16."]


if __name__ == "__main__":
    sys.exit(main())
