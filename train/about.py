"""`run.json`: what a run's folder says that it is a run of."""

import json
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
