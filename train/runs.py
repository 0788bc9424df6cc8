"""A run's folder: whose it is, and what lies in it.

run.json         the Recipe and the corpus's hash
metrics.jsonl    one line per compiled call, one per validation
checkpoints/     full training states (orbax): the last ones and the best one
model/           the best model so far, for `jaxformer.load` and `train.sample`; models/SEED of an ensemble
report.png       the losses, and whatever else the metrics hold
samples.txt      a text from before the first step and one from the best model
tensorboard/     the metrics once more, if asked for
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from jaxformer.checkpoint import replace_file
from train.about import read_about
from train.recipe import Recipe


class RunError(Exception):
    """A run that cannot start, go on or be saved, and what to do about it."""


def open_run(folder: Path, recipe: Recipe, corpus: str, *, resume: bool, overwrite: bool) -> None:
    """Make a run's folder, or check that the one there is a run of the same Recipe and text.

    Raises:
        RunError: the name is taken, there is nothing to resume, or it was another run.
        OSError: the folder cannot be made.
    """
    about = _plain({"recipe": recipe, "corpus_sha256": corpus})
    if resume:
        _check_same(folder, about)
        return
    if folder.exists() and not overwrite:
        raise RunError(
            f"{folder} exists; choose another name (--name), go on with it (--resume) or replace it (--overwrite)"
        )
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "run.json").is_file():
            raise RunError(
                f"{folder} is not a run's folder (no run.json in it); nothing was removed"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    replace_file(folder / "run.json", json.dumps(about, indent=2).encode())


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    """As it is read back from JSON, where dataclasses are objects and tuples lists."""
    return json.loads(json.dumps(tree, default=dataclasses.asdict))


def _check_same(folder: Path, about: dict[str, Any]) -> None:
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"there is no run to resume in {folder}; leave --resume out to start one")
    fields = [f for f in dataclasses.fields(Recipe) if f.default is not dataclasses.MISSING]
    older = _plain({"recipe": {f.name: f.default for f in fields}})  # what it does not say was so
    was, now = flat(older) | flat(read_about(path)), flat(about)
    if different := sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k)):
        changes = "; ".join(f"{k} was {was.get(k)!r}, is {now.get(k)!r}" for k in different)
        raise RunError(
            f"{folder} is a run of another recipe: {changes}. Resume it with its own options, "
            "or start another run with --name"
        )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, the names joined by dots."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found
