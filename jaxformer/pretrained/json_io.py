"""JSON files of models, which may be cut short or damaged: an object, or a sentence with the name of the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        ValueError: no JSON, no object, or a key twice in one, of which Python alone would let the last win.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is cut short or is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, not {type(value).__name__}")
    return value


def explained(path: Path, read: Callable[[], Any]) -> Any:
    """What was read; an error that does not name the file gets its name.

    Raises:
        ValueError: as `read`.
    """
    try:
        return read()
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is given twice in one object")
        found[name] = value
    return found
