"""The folder of a run, and how to recognize the run that it belongs to.

run.json         the Recipe and the hashes of the corpus and of the model that it started from
metrics.jsonl    one line per compiled call and one per validation
checkpoints/     full training states (orbax): the latest ones and the best one
model/           the best model so far, for `jaxformer.load` and `train.sample`; models/SEED for an ensemble
report.png       plots of the losses and of the other metrics
samples.txt      a sample from before the first step and one from the best model
tensorboard/     the metrics again, with --tensorboard
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from jaxformer.config_checks import current_names
from jaxformer.pretrained.atomic import replace_file
from jaxformer.pretrained.json_io import read_object
from train.recipe import Architecture, Recipe


class RunError(Exception):
    """A run cannot start, continue or be saved."""


def open_run(
    folder: Path,
    recipe: Recipe,
    corpus: str,
    *,
    resume: bool,
    overwrite: bool,
    start: str | None = None,
) -> None:
    """Make the folder of a run, or check that an existing one has the same Recipe and text.

    Args:
        corpus: hash of the text.
        resume: the folder must exist.
        overwrite: replace an existing folder.
        start: hash of the model that the run starts from.

    Raises:
        RunError: the name is taken, there is nothing to resume, the folder belongs to another run, or --overwrite would
            remove the model to start from.
        OSError: the folder cannot be made.
    """
    about = about_run(recipe, corpus, start)
    if resume:
        _check_same(folder, about)
        return
    if folder.exists() and not overwrite:
        raise RunError(
            f"{folder} exists; choose another name (--name), resume it (--resume) or replace it (--overwrite)"
        )
    if folder.exists():
        _check_removable(folder, recipe.start)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    replace_file(folder / "run.json", json.dumps(about, indent=2).encode())


def about_run(recipe: Recipe, corpus: str, start: str | None = None) -> dict[str, Any]:
    """Return the content of run.json."""
    about = plain({"recipe": recipe, "corpus_sha256": corpus})
    return about if start is None else about | {"start_sha256": start}


def _check_removable(folder: Path, start: str | None) -> None:
    if any(folder.iterdir()) and not (folder / "run.json").is_file():
        raise RunError(
            f"{folder} is not the folder of a run (it has no run.json); nothing was removed"
        )
    if start is not None and Path(start).resolve().is_relative_to(folder.resolve()):
        raise RunError(
            f"--overwrite would remove {folder}, which contains {start}, the model to start from; "
            "choose another name (--name)"
        )


def plain(tree: dict[str, Any]) -> dict[str, Any]:
    """Convert to what JSON reads back: dataclasses become dicts, tuples become lists."""
    return json.loads(json.dumps(tree, default=dataclasses.asdict))


def _check_same(folder: Path, about: dict[str, Any]) -> None:
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"there is no run to resume in {folder}; leave --resume out to start one")
    recipe = _defaults(Recipe) | {"config": _defaults(Architecture)}
    defaults = plain({"recipe": recipe})  # run.json of an earlier version lacks newer fields
    was, now = flat(defaults) | flat(read_about(path)), flat(about)
    if changes := differences(was, now, "was", "is"):
        raise RunError(
            f"{folder} is a run of another recipe: {changes}. Resume it with the options of that run, "
            "or start another run with --name"
        )


def _defaults(record: type) -> dict[str, Any]:
    fields: Any = dataclasses.fields(record)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def differences(one: dict[str, Any], other: dict[str, Any], own: str, others: str) -> str:
    """Describe the fields that differ; "" if none does.

    >>> differences({"steps": 5, "a": 1}, {"steps": 6, "a": 1}, "was", "is")
    'steps was 5, is 6'
    """
    was, now = flat(one), flat(other)
    different = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
    return "; ".join(f"{k} {own} {was.get(k)!r}, {others} {now.get(k)!r}" for k in different)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts into one, joining the names with dots."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def read_about(path: Path) -> dict[str, Any]:
    """Read a run.json: the Recipe as plain data, and the hash of the corpus.

    Raises:
        ValueError: the file is damaged or does not describe a run.
    """
    about = read_object(path)
    recipe = about.get("recipe")
    if "corpus_sha256" not in about or not isinstance(recipe, dict) or "context" not in recipe:
        raise ValueError(
            f"{path} does not describe a run: it lacks a recipe or the hash of a corpus"
        )
    # Names of earlier versions.
    if isinstance(recipe.get("config"), dict):
        recipe["config"] = current_names(recipe["config"])
    if "last_share" in (optimizer := recipe.get("optimizer", {})):
        optimizer["final_lr_fraction"] = optimizer.pop("last_share")
    return about


def find_model(name: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], int | None]:
    """Return what `jaxformer.load` can read, and the context of training if run.json has it.

    Args:
        name: the folder of a run, or anything that `load` accepts.

    Raises:
        ValueError: the folder of an ensemble, which holds several models; a damaged `run.json`.
    """
    run = Path(name)
    if not run.is_dir():
        return name, None
    folder = run / "model" if (run / "run.json").is_file() else run
    members = run / "models"
    if folder != run and members.is_dir():
        raise ValueError(f"{run} is an ensemble; name the folder of one of its models in {members}")
    home = folder.parent.parent if folder.parent.name == "models" else folder.parent
    about = home / "run.json"
    return folder, read_about(about)["recipe"]["context"] if about.is_file() else None
