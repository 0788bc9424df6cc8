"""Names of fields that are left out when a model is read: the argument `ignore` of `load`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def check_ignore(ignore: Any) -> frozenset[str]:
    """Return the names of the fields to leave out.

    Raises:
        ValueError: a string, or something else than a sequence of strings.
    """
    if isinstance(ignore, str):
        raise ValueError(
            f"ignore={ignore!r} is a string; give a tuple: ignore={as_tuple([ignore])}"
        )
    sequence = isinstance(ignore, (tuple, list, set, frozenset))
    if not sequence or not all(isinstance(name, str) for name in ignore):
        raise ValueError(f"ignore={ignore!r} must be a tuple of names of fields")
    return frozenset(ignore)


def as_tuple(names: Sequence[str]) -> str:
    """Format names as a tuple of Python."""
    return f"({', '.join(map(json.dumps, names))}{',' * (len(names) == 1)})"


def field_names(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of fields; those of a nested table are `table.name`."""
    for name, value in values.items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in field_names(value))
