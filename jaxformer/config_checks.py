"""The checks behind Config and Compute: each raises a ValueError that names the field, its value and the repair."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


class Record:
    """A frozen dataclass whose fields are checked against their annotations, and whose repr shows no defaults."""

    prefix = ""
    """what stands before a field's name in errors"""

    def __post_init__(self) -> None:
        """Convert numbers of other types, such as NumPy's, to Python's; then check every field."""
        for name, hint in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if getattr(value, "ndim", None) == 0:  # a number of NumPy or JAX
                value = value.item()
            union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
            options = typing.get_args(hint) if union else (hint,)
            if float in options and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            object.__setattr__(self, name, value)
            if value != value or not any(_matches(value, option) for option in options):
                raise ValueError(
                    f"{self.prefix}{name}={value!r} must be {' or '.join(map(_describe, options))}"
                )

    def __repr__(self) -> str:
        fields: Any = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        changed = [f.name for f in fields if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in changed)})"


def _matches(value: object, option: Any) -> bool:
    if typing.get_origin(option) is Literal:
        return isinstance(value, str) and value in typing.get_args(option)
    if typing.get_origin(option) is tuple:
        each, _ = typing.get_args(option)
        return isinstance(value, tuple) and all(_matches(one, each) for one in value)
    if option is bool:
        return isinstance(value, bool)
    return isinstance(value, option) and not isinstance(value, bool)


def _describe(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(option)))}"
    if typing.get_origin(option) is tuple:
        return f"a tuple, each {_describe(typing.get_args(option)[0])}"
    names = {
        int: "an integer", float: "a number", bool: "True or False", str: "a string",
        types.NoneType: "None",
    }  # fmt: skip
    return names.get(option, f"a {getattr(option, '__name__', option)}")


def at_least(record: Any, name: str, least: int) -> None:
    """Refuse a number below another. None passes."""
    value = getattr(record, name)
    if value is not None and value < least:
        raise ValueError(f"{record.prefix}{name}={value} must be at least {least}")


def positive(record: Any, name: str, repair: str) -> None:
    """Refuse a number that is not above 0, or not finite. None passes."""
    value = getattr(record, name)
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{record.prefix}{name}={value} must be a positive number; {repair}")


def check_saved(compute: Any) -> None:
    """Refuse names of sites to keep that nothing would read, or that this kernel never computes."""
    saved, remat = compute.saved, compute.remat
    if saved and remat != "sites":
        raise ValueError(
            f'saved={saved!r} is read only with remat="sites", not {remat!r}; leave it at ()'
        )
    if remat == "sites" and not saved:
        raise ValueError(
            'saved=() with remat="sites" recomputes each block whole; name sites, or choose remat="block"'
        )
    if twice := [site for site in saved if saved.count(site) > 1]:
        raise ValueError(f"saved={saved!r} holds {twice[0]!r} more than once; name each site once")
    if compute.kernel != "einsum" and (hidden := {"scores", "pattern"} & {*saved}):
        raise ValueError(
            f"kernel={compute.kernel!r} never computes {min(hidden)!r}; leave it out of saved, "
            'or choose kernel="einsum"'
        )


def check_position(config: Any) -> None:
    """Refuse a positional encoding that the other fields do not allow."""
    if config.position == "learned" and config.n_context is None:
        raise ValueError('position="learned" needs n_context, the number of rows of its table')
    if config.position == "sinusoidal" and config.d_model % 2:
        raise ValueError(
            f'position="sinusoidal" fills the stream with pairs; choose an even d_model, not {config.d_model}'
        )
    width = config.rotary_width
    if config.position == "rotary" and (width < 2 or width % 2):
        raise ValueError(
            f"rotary positions rotate pairs of coordinates; d_head={config.d_head} times "
            f"rotary.fraction={config.rotary.fraction} gives {width}, not an even number of 2 or more"
        )


def check_rotary(rotary: Any) -> None:
    """Refuse settings of rotary positions that contradict each other."""
    if not 0 < rotary.fraction <= 1:
        raise ValueError(f"rotary.fraction={rotary.fraction} must be above 0 and at most 1")
    for name in ("base", "local_base"):
        base = getattr(rotary, name)
        if base is not None and not 1 < base < math.inf:
            raise ValueError(f"rotary.{name}={base} must be above 1; 10000 is usual")
    positive(rotary, "factor", "1.0 changes nothing")
    at_least(rotary, "original_context", 1)
    if rotary.scaling == "llama3":
        if rotary.original_context is None:
            raise ValueError(
                'rotary.scaling="llama3" needs rotary.original_context, 8192 in Llama 3'
            )
        if not 0 < rotary.low_turns < rotary.high_turns < math.inf:
            raise ValueError(
                f"rotary.low_turns={rotary.low_turns} must be above 0 and below rotary.high_turns={rotary.high_turns}"
            )


def unread_fields(config: Any) -> dict[str, str]:
    """Return the fields that the other choices leave unread, each with what would make it read."""
    rotary = (config.position == "rotary", 'position="rotary"')
    scaled = (
        rotary[0] and config.rotary.scaling != "none",
        'position="rotary" and rotary.scaling="linear" or "llama3"',
    )
    llama3 = (
        rotary[0] and config.rotary.scaling == "llama3",
        'position="rotary" and rotary.scaling="llama3"',
    )
    normed = (config.norm != "none", 'norm="layer" or "rms"')
    any_norm = (normed[0] or config.qk_norm != "none", normed[1] + ", or a qk_norm")
    mlp = (config.d_mlp > 0, "d_mlp above 0")
    window = (config.window is not None, "a window")
    readers = {
        "n_context": (config.position == "learned", 'position="learned"'),
        "rotary.base": rotary, "rotary.fraction": rotary, "rotary.scaling": rotary, "rotary.factor": scaled,
        "rotary.original_context": llama3, "rotary.low_turns": llama3, "rotary.high_turns": llama3,
        "rotary.local_base": (rotary[0] and window[0], 'position="rotary" and a window'),
        "norm_epsilon": any_norm, "norm_plus_one": any_norm, "norm_place": normed,
        "gated": mlp, "parallel": mlp, "activation": mlp,
        "window_pattern": window,
    }  # fmt: skip
    return {name: needed for name, (read, needed) in readers.items() if not read}


def flat_fields(config: Any) -> dict[str, Any]:
    """Return a Config's fields by name, those of rotary as "rotary.base" and so on."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "rotary":
            found |= {f"rotary.{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
        else:
            found[field.name] = value
    return found


FORMER_NAMES = {
    "rotary_base": "rotary.base", "rotary_fraction": "rotary.fraction", "rotary_scaling": "rotary.scaling",
    "rotary_factor": "rotary.factor", "rotary_context": "rotary.original_context",
    "rotary_low": "rotary.low_turns", "rotary_high": "rotary.high_turns", "local_rotary_base": "rotary.local_base",
    "scale_by_depth": "scale_scores_by_layer", "attention_cap": "attention_soft_cap",
    "logit_cap": "logit_soft_cap",
}  # fmt: skip
"""Names of Config's fields in files of earlier versions, and their names now."""


def current_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Config's fields under the names that they have now.

    >>> current_names({"d_model": 8, "rotary_base": 100.0})
    {'d_model': 8, 'rotary': {'base': 100.0}}
    """
    rotary = fields.get("rotary", {})
    if not isinstance(rotary, Mapping):
        raise ValueError(f"rotary={rotary!r} must be an object of fields")
    found: dict[str, Any] = {}
    nested: dict[str, Any] = dict(rotary)
    for name, value in fields.items():
        now = FORMER_NAMES.get(name, name)
        if now.startswith("rotary."):
            nested[now.removeprefix("rotary.")] = value
        else:
            found[now] = value
    return found | {"rotary": nested}
