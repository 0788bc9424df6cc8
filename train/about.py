"""What a run's folder says that it is a run of, in `run.json`, and where its model is."""

import json
import os
from pathlib import Path
from typing import Any


def read_about(path: Path) -> dict[str, Any]:
    """The Recipe (as plain data) and the corpus's hash.

    Raises:
        ValueError: the file is damaged or another program's.
    """
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is cut short or is no JSON: {error}") from error
    whole = isinstance(about, dict) and "corpus_sha256" in about
    if not (whole and isinstance(about.get("recipe"), dict) and "context" in about["recipe"]):
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
