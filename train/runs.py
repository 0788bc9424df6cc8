"""A run's folder: whose it is, and what lies in it.

run.json         the Recipe and the hashes of the corpus and of the model that it started from
metrics.jsonl    one line per compiled call, one per validation
checkpoints/     full training states (orbax): the last ones and the best one
model/           the best model so far, for `jaxformer.load` and `train.sample`; models/SEED of an ensemble
report.png       the losses, and whatever else the metrics hold
samples.txt      a text from before the first step and one from the best model
tensorboard/     the metrics once more, if asked for
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from jaxformer.pretrained.atomic import replace_file
from jaxformer.pretrained.json_io import read_object
from train.recipe import Architecture, Recipe


class RunError(Exception):
    """A run that cannot start, go on or be saved, and what to do about it."""


def open_run(
    folder: Path,
    recipe: Recipe,
    corpus: str,
    *,
    resume: bool,
    overwrite: bool,
    start: str | None = None,
) -> None:
    """Make a run's folder, or check that the one there is a run of the same Recipe and text.

    Args:
        folder: of the run.
        recipe: what it does.
        corpus: the hash of its text.
        resume: it is there.
        overwrite: if it is there, begin anew.
        start: the hash of the model that it goes on from.

    Raises:
        RunError: the name is taken, there is nothing to resume, it was another run, or the model to go on from lies
            in what would be removed.
        OSError: the folder cannot be made.
    """
    about = about_run(recipe, corpus, start)
    if resume:
        _check_same(folder, about)
        return
    if folder.exists() and not overwrite:
        raise RunError(
            f"{folder} exists; choose another name (--name), go on with it (--resume) or replace it (--overwrite)"
        )
    if folder.exists():
        _check_removable(folder, recipe.start)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    replace_file(folder / "run.json", json.dumps(about, indent=2).encode())


def about_run(recipe: Recipe, corpus: str, start: str | None = None) -> dict[str, Any]:
    """What run.json says of a run."""
    about = plain({"recipe": recipe, "corpus_sha256": corpus})
    return about if start is None else about | {"start_sha256": start}


def _check_removable(folder: Path, start: str | None) -> None:
    if any(folder.iterdir()) and not (folder / "run.json").is_file():
        raise RunError(f"{folder} is not a run's folder (no run.json in it); nothing was removed")
    if start is not None and Path(start).resolve().is_relative_to(folder.resolve()):
        raise RunError(
            f"{start}, to start from, lies in {folder}, which --overwrite would remove; "
            "choose another name (--name)"
        )


def plain(tree: dict[str, Any]) -> dict[str, Any]:
    """As it is read back from JSON, where dataclasses are objects and tuples lists."""
    return json.loads(json.dumps(tree, default=dataclasses.asdict))


def _check_same(folder: Path, about: dict[str, Any]) -> None:
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"there is no run to resume in {folder}; leave --resume out to start one")
    recipe = _defaults(Recipe) | {"config": _defaults(Architecture)}
    older = plain({"recipe": recipe})  # what it does not say was so
    was, now = flat(older) | flat(read_about(path)), flat(about)
    if changes := differences(was, now, "was", "is"):
        raise RunError(
            f"{folder} is a run of another recipe: {changes}. Resume it with its own options, "
            "or start another run with --name"
        )


def _defaults(record: type) -> dict[str, Any]:
    fields: Any = dataclasses.fields(record)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def differences(one: dict[str, Any], other: dict[str, Any], own: str, others: str) -> str:
    """What two descriptions say differently, in words; "" if nothing.

    >>> differences({"steps": 5, "a": 1}, {"steps": 6, "a": 1}, "was", "is")
    'steps was 5, is 6'
    """
    was, now = flat(one), flat(other)
    different = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
    return "; ".join(f"{k} {own} {was.get(k)!r}, {others} {now.get(k)!r}" for k in different)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, the names joined by dots."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def read_about(path: Path) -> dict[str, Any]:
    """The Recipe (as plain data) and the corpus's hash.

    Raises:
        ValueError: the file is damaged or another program's.
    """
    about = read_object(path)
    recipe = about.get("recipe")
    if "corpus_sha256" not in about or not isinstance(recipe, dict) or "context" not in recipe:
        raise ValueError(f"{path} does not describe a run: it lacks a recipe or the corpus's hash")
    return about


def find_model(name: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], int | None]:
    """What `jaxformer.load` can read, and the context that it was trained on if a run's folder says so.

    Args:
        name: a run's folder, or whatever `load` takes.

    Raises:
        ValueError: an ensemble's folder, which holds several models; a damaged `run.json`.
    """
    run = Path(name)
    if not run.is_dir():
        return name, None
    folder = run / "model" if (run / "run.json").is_file() else run
    members = run / "models"
    if folder != run and members.is_dir():
        raise ValueError(f"{run} is an ensemble's; name one of its models' folders in {members}")
    home = folder.parent.parent if folder.parent.name == "models" else folder.parent
    about = home / "run.json"
    return folder, read_about(about)["recipe"]["context"] if about.is_file() else None
