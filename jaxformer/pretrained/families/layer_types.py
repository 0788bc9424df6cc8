"""Attention windows in Hugging Face configs: a list of layer types becomes a window and its pattern."""

from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families.hf_config import Fields

LOCAL, GLOBAL = "sliding_attention", "full_attention"
"""transformers' names of a layer with a window, and of one without."""
LETTERS = {LOCAL: "L", "local": "L", GLOBAL: "G", "global": "G"}


def take_layer_types(fields: Fields, window: int | None, usual: list[str]) -> dict[str, Any]:
    """Return the Config's window fields from the field `layer_types`.

    Args:
        fields: of the config.
        window: its window.
        usual: the type of each layer if `layer_types` is absent.

    Raises:
        ValueError: as in `windows`, or another number of layers.
    """
    types = fields.take("layer_types", "list", None) or usual
    if len(types) != len(usual):
        raise ValueError(
            f"{fields.where} has {len(types)} layer_types, but num_hidden_layers={len(usual)}"
        )
    return windows(fields, window, types, "layer_types")


def windows(fields: Fields, window: int | None, types: list[str], name: str) -> dict[str, Any]:
    """Return the Config's window fields from the type of each layer, which the field of this name lists.

    Raises:
        ValueError: an unknown type, or a windowed layer in a config without a window.
    """
    if unknown := [kind for kind in types if kind not in LETTERS]:
        raise ValueError(
            f"{fields.where} has {unknown[0]!r} in {name}; jaxformer supports {', '.join(LETTERS)}"
        )
    pattern = "".join(LETTERS[kind] for kind in types)
    if "L" not in pattern:
        return {}
    if window is None:
        raise ValueError(f"{fields.where} has windowed layers in {name}, but gives no window size")
    return {"window": window, "window_pattern": shortest(pattern)}


def shortest(pattern: str) -> str:
    """Return the shortest prefix whose repetition gives the pattern.

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
    """Return transformers' type of each layer."""
    return [LOCAL if local else GLOBAL for local in config.local_layers]
