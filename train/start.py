"""Read a command line: a Recipe, its text, and the model to start from, if there is one."""

import dataclasses
import hashlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import tyro

from jaxformer.config import Config
from jaxformer.config_checks import unread_fields
from jaxformer.model.params import Params
from jaxformer.model.remat import check_saved
from jaxformer.pretrained.loading import load, load_config
from jaxformer.text.tokenizer import Tokenizer
from train.data.dataset import Data, open_data
from train.data.tasks import TASKS
from train.devices.layout import Layout
from train.devices.processes import on_host
from train.presets import PRESETS
from train.recipe import Architecture, Recipe
from train.runs import find_model


class Opened(NamedTuple):
    """A Recipe, its text, and the model that it starts from."""

    recipe: Recipe
    """its config is that of the model to start from"""
    config: Config
    data: Data
    first: Params | None = None
    """parameters of the model to start from, in float32; None: fresh ones"""
    sha256: str | None = None
    """hash of that model's tokenizer and parameters"""


def open_recipe(recipe: Recipe, layout: Layout = Layout()) -> Opened:
    """Open the text and the model; the parameters are sharded by the layout of the run.

    Raises:
        ValueError: an unknown corpus; a model that jaxformer cannot compute; a corpus and a model that do not fit
            each other, or the Recipe.
        OSError: the corpus or the model cannot be read or downloaded.
    """
    if recipe.start is None:
        data = open_data(recipe)
        return Opened(recipe, recipe.config.for_tokenizer(data.tokenizer), data)
    if recipe.corpus in TASKS:
        open_data(recipe)  # raises before the model is read
    place, _ = find_model(recipe.start)
    config = load_config(place)
    recipe = dataclasses.replace(recipe, config=Architecture.of(config))
    recipe.check_context()
    check_saved(config, recipe.compute)
    rules = None if layout.mesh is None else dict(layout.rules)
    params, config, tokenizer = load(place, dtype="float32", mesh=layout.mesh, rules=rules)
    data = open_data(recipe, tokenizer)
    return Opened(recipe, config, data, params, _hash(params, tokenizer))


def open_vocabulary(recipe: Recipe) -> Config:
    """Return the Config of a Recipe, without reading any parameters.

    Raises:
        ValueError: as `open_recipe`.
        OSError: as `open_recipe`.
    """
    if recipe.start is not None:
        return load_config(find_model(recipe.start)[0])
    return recipe.config.for_tokenizer(open_data(recipe).tokenizer)


def _hash(params: Params, tokenizer: Tokenizer | None) -> str:
    digest = hashlib.sha256(b"" if tokenizer is None else tokenizer.to_json().encode())
    for array in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(on_host(array)).data)
    return digest.hexdigest()


Kind = TypeVar("Kind", bound=Recipe)


def read_command(
    kind: type[Kind],
    program: str,
    args: list[str],
    more: Callable[[str], dict[str, Any]] = lambda preset: {},
) -> Kind:
    """Read a command line, whose first argument may be the name of a preset.

    Args:
        kind: a Recipe with fields of its own.
        program: name of the command, for the help text.
        args: of the command line.
        more: from the name of the preset to the defaults of the fields that a Recipe lacks.

    Raises:
        ValueError: an unknown preset, options that contradict each other, or an option that nothing would read.
    """
    preset, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else ("seed", args)
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; choose from {', '.join(PRESETS)}")
    recipe = PRESETS[preset]()
    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    command = tyro.cli(
        kind,
        prog=f"{program} {preset}",
        description=f"{inspect.getdoc(PRESETS[preset])}\n\nPresets: {', '.join(PRESETS)}.",
        default=kind(**fields, **more(preset)),
        args=rest,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    options = [argument.partition("=")[0] for argument in rest if argument.startswith("--")]
    _check_read(command, [option[2:].replace("-", "_") for option in options])
    return command


def _check_read(command: Recipe, given: list[str]) -> None:
    """Refuse options that were given and that nothing reads."""
    unread = {f"config.{name}": why for name, why in unread_fields(command.config).items()}
    unread |= {f"optimizer.{name}": why for name, why in command.optimizer.unread.items()}
    for name in given:
        if command.start is not None and (name == "tokenizer" or name.startswith("config.")):
            why = f"a run with --start={command.start} has the architecture and the tokenizer of that model"
            raise ValueError(f"--{name.replace('_', '-')} is not read: {why}; leave it out")
        if name in unread:
            raise ValueError(
                f"--{name.replace('_', '-')} is read only with {unread[name]}; leave it out"
            )


def recipe_of(command: Recipe) -> Recipe:
    """Return the part of a command that determines a run's numbers."""
    return Recipe(**{f.name: getattr(command, f.name) for f in dataclasses.fields(Recipe)})
