"""From a command line to what it names: a Recipe, its text, and the model to go on from, if there is one."""

import dataclasses
import hashlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import tyro

from jaxformer.config import Config
from jaxformer.model.params import Params
from jaxformer.model.remat import check_saved
from jaxformer.pretrained.load import load, load_config
from jaxformer.text.tokenizer import Tokenizer
from train.data.dataset import Data, open_data
from train.data.tasks import TASKS
from train.devices.layout import Layout
from train.devices.processes import on_host
from train.presets import PRESETS
from train.recipe import Architecture, Recipe
from train.runs import find_model


class Opened(NamedTuple):
    """A Recipe and what it is about."""

    recipe: Recipe
    """with the Config of the model that it starts from"""
    config: Config
    data: Data
    first: Params | None = None
    """of the model that it starts from, in float32; None: there is none"""
    sha256: str | None = None
    """of that model: its tokenizer and its parameters"""


def open_recipe(recipe: Recipe, layout: Layout = Layout()) -> Opened:  # noqa: B008  frozen
    """The text, the model and their Config; the model's parameters lie as a run's on these devices do.

    Raises:
        ValueError: there is no such corpus; a model that jaxformer cannot compute; one of them does not fit the other,
            or the Recipe.
        OSError: the corpus or the model cannot be read or downloaded.
    """
    if recipe.start is None:
        data = open_data(recipe)
        return Opened(recipe, recipe.config.for_tokenizer(data.tokenizer), data)
    if recipe.corpus in TASKS:
        open_data(recipe)  # refuses it before the model is read
    place, _ = find_model(recipe.start)
    config = load_config(place)
    recipe = dataclasses.replace(recipe, config=Architecture(**dataclasses.asdict(config)))
    recipe.check_context()
    check_saved(config, recipe.compute)
    rules = None if layout.mesh is None else dict(layout.rules)
    config, params, tokenizer = load(place, dtype="float32", mesh=layout.mesh, rules=rules)
    data = open_data(recipe, tokenizer)
    return Opened(recipe, config, data, params, _hash(params, tokenizer))


def open_vocabulary(recipe: Recipe) -> Config:
    """The Config of a Recipe alone: of a model to start from no parameter is read.

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
