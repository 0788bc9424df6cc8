"""Command lines that begin with a preset and may change anything of it."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from train.presets import PRESETS
from train.recipe import Recipe

Kind = TypeVar("Kind", bound=Recipe)


def read_command(
    kind: type[Kind],
    program: str,
    args: list[str],
    more: Callable[[str], dict[str, Any]] = lambda preset: {},
) -> Kind:
    """The Recipe, of this kind, that the arguments describe; the first one may be a preset's name.

    Args:
        kind: a Recipe with fields of its own.
        program: how it is called, for its help.
        args: of the command line.
        more: defaults of the kind's own fields, from the preset's name.

    Raises:
        ValueError: an unknown preset, or options that contradict each other.
    """
    preset, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else ("seed", args)
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; choose from {', '.join(PRESETS)}")
    recipe = PRESETS[preset]()
    given = [argument.partition("=")[0].replace("_", "-") for argument in rest]
    unread = [name for name in given if name == "--tokenizer" or name.startswith("--config.")]
    if "--start" in given and unread:
        raise ValueError(
            f"{unread[0]} would not be read: a run with --start has the architecture and the tokenizer of "
            "that model; leave one of them out"
        )
    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    return tyro.cli(
        kind,
        prog=f"{program} {preset}",
        description=f"{inspect.getdoc(PRESETS[preset])}\n\nPresets: {', '.join(PRESETS)}.",
        default=kind(**fields, **more(preset)),
        args=rest,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def recipe_of(command: Recipe) -> Recipe:
    """The part of a command that decides a run's numbers."""
    return Recipe(**{f.name: getattr(command, f.name) for f in dataclasses.fields(Recipe)})
