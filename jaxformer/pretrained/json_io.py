"""Read the JSON files of a model. They may be damaged: every error names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: not JSON, not an object, or an object with a duplicate key (Python would keep the last).
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, not {type(value).__name__}")
    return value


def explained(path: Path, read: Callable[[], Any]) -> Any:
    """Return what `read` returns; prefix its errors with the file's name, if they lack it.

    Raises:
        ValueError: as raised by `read`.
    """
    try:
        return read()
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} occurs twice in one object")
        found[name] = value
    return found
