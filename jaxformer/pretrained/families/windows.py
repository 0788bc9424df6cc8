"""Windows in foreign configs: what each layer is, as a list, to a window and a pattern of letters."""

from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families.fields import Fields

LOCAL, GLOBAL = "sliding_attention", "full_attention"
"""Transformers' names for a layer with a window, and for one without."""
LETTERS = {LOCAL: "L", "local": "L", GLOBAL: "G", "global": "G"}


def take_layer_types(fields: Fields, window: int | None, usual: list[str]) -> dict[str, Any]:
    """Our window and its pattern, of the field `layer_types`, or of what the layers usually are.

    Raises:
        ValueError: as `windows`, or another number of layers.
    """
    types = fields.take("layer_types", "list", None) or usual
    if len(types) != len(usual):
        raise ValueError(
            f"{fields.where} has {len(types)} layer_types, and num_hidden_layers={len(usual)}"
        )
    return windows(fields, window, types, "layer_types")


def windows(fields: Fields, window: int | None, types: list[str], name: str) -> dict[str, Any]:
    """Our window and its pattern, of a type for each layer, from the field of this name.

    Raises:
        ValueError: an unknown type, or a layer with a window where there is none.
    """
    if unknown := [kind for kind in types if kind not in LETTERS]:
        raise ValueError(
            f"{fields.where} has {unknown[0]!r} in {name}; known are {', '.join(LETTERS)}"
        )
    pattern = "".join(LETTERS[kind] for kind in types)
    if "L" not in pattern:
        return {}
    if window is None:
        raise ValueError(f"{fields.where} has layers with a window in {name}, but no window")
    return {"window": window, "window_pattern": shortest(pattern)}


def shortest(pattern: str) -> str:
    """The shortest beginning that gives the whole when it is repeated.

    >>> shortest("LLGLLGLL"), shortest("GGL")
    ('LLG', 'GGL')
    """
    sizes = range(1, len(pattern) + 1)
    return next(
        pattern[:size]
        for size in sizes
        if (pattern[:size] * -(-len(pattern) // size)).startswith(pattern)
    )


def write_layer_types(config: Config) -> list[str]:
    """A type for each layer."""
    return [LOCAL if local else GLOBAL for local in config.local_layers]
