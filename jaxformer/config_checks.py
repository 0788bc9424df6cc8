"""What a Config and a Compute hold their fields to: one clear sentence for each that cannot be."""

import dataclasses
import math
import types
import typing
from typing import Any, Literal


def check_types(record: Any) -> None:
    """Hold each field to its annotation: a type, a Literal, a tuple of one of these, or a union with None."""
    for name, hint in typing.get_type_hints(type(record)).items():
        value = getattr(record, name)
        union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        options = typing.get_args(hint) if union else (hint,)
        if not any(_matches(value, option) for option in options):
            raise ValueError(f"{name}={value!r} must be {' or '.join(map(_say, options))}")


def _matches(value: object, option: Any) -> bool:
    if typing.get_origin(option) is Literal:
        return isinstance(value, str) and value in typing.get_args(option)
    if typing.get_origin(option) is tuple:
        each, _ = typing.get_args(option)
        return isinstance(value, tuple) and all(_matches(one, each) for one in value)
    if option is bool:
        return isinstance(value, bool)
    if option is float:  # Python's habit: an int will do for a float; a bool for neither
        option = (int, float)
    return isinstance(value, option) and not isinstance(value, bool)


def _say(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(option)))}"
    if typing.get_origin(option) is tuple:
        return f"a tuple, each {_say(typing.get_args(option)[0])}"
    names = {
        int: "an integer", float: "a number", bool: "True or False", str: "a text",
        types.NoneType: "None",
    }  # fmt: skip
    return names[option]


def at_least(record: Any, name: str, least: int) -> None:
    """Refuse a number below another; None is none."""
    value = getattr(record, name)
    if value is not None and value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


def positive(record: Any, name: str, repair: str) -> None:
    """Refuse a number that is not above 0, or not finite; None is none."""
    value = getattr(record, name)
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name}={value} must be a positive number; {repair}")


def check_saved(compute: Any) -> None:
    """Refuse names of sites to keep that nothing would read, or that this way of running never forms."""
    saved, remat = compute.saved, compute.remat
    if saved and remat != "sites":
        raise ValueError(
            f'saved={saved!r} is read only with remat="sites", not {remat!r}; leave it at ()'
        )
    if remat == "sites" and not saved:
        raise ValueError(
            'remat="sites" without any saved recomputes each block whole; name sites, or choose remat="block"'
        )
    if twice := [site for site in saved if saved.count(site) > 1]:
        raise ValueError(f"saved={saved!r} holds {twice[0]!r} more than once; name each site once")
    if compute.kernel != "einsum" and (unformed := {"scores", "pattern"} & {*saved}):
        raise ValueError(
            f"kernel={compute.kernel!r} never forms {min(unformed)!r}; leave it out of saved, "
            'or choose kernel="einsum"'
        )


def check_position(config: Any) -> None:
    """Refuse a position scheme whose own fields do not fit."""
    if config.position == "learned" and config.n_context is None:
        raise ValueError('position="learned" needs n_context, the number of rows of its table')
    if config.position == "sinusoidal" and config.d_model % 2:
        raise ValueError(
            f'position="sinusoidal" fills the stream with pairs; choose an even d_model, not {config.d_model}'
        )
    if config.position == "rotary":
        _check_rotary(config)


def _check_rotary(config: Any) -> None:
    if not 0 < config.rotary_fraction <= 1:
        raise ValueError(f"rotary_fraction={config.rotary_fraction} must be above 0 and at most 1")
    for name in ("rotary_base", "local_rotary_base"):
        base = getattr(config, name)
        if base is not None and not 1 < base < math.inf:
            raise ValueError(f"{name}={base} must be above 1; 10000 is usual")
    if config.rotary_width < 2 or config.rotary_width % 2:
        raise ValueError(
            f"rotary turns pairs of coordinates; d_head={config.d_head} times "
            f"rotary_fraction={config.rotary_fraction} gives {config.rotary_width}, not an even number of 2 or more"
        )
    positive(config, "rotary_factor", "1.0 slows nothing")
    if config.rotary_scaling == "llama3":
        at_least(config, "rotary_context", 1)
        if config.rotary_context is None:
            raise ValueError('rotary_scaling="llama3" needs rotary_context, 8192 in Llama 3')
        if not 0 < config.rotary_low < config.rotary_high < math.inf:
            raise ValueError(
                f"rotary_low={config.rotary_low} must be above 0 and below rotary_high={config.rotary_high}"
            )


def check_unread(config: Any) -> None:
    """Refuse a choice that the rest of the Config leaves without a reader."""
    rotary = (config.position == "rotary", 'position="rotary"')
    scaled = (config.rotary_scaling != "none", 'rotary_scaling="linear" or "llama3"')
    llama3 = (config.rotary_scaling == "llama3", 'rotary_scaling="llama3"')
    normed = (config.norm != "none", 'norm="layer" or "rms"')
    any_norm = (normed[0] or config.qk_norm != "none", normed[1] + ", or a qk_norm")
    mlp = (config.d_mlp > 0, "d_mlp above 0")
    window = (config.window is not None, "a window")
    readers = {
        "n_context": (config.position == "learned", 'position="learned"'),
        "rotary_base": rotary, "rotary_fraction": rotary, "rotary_scaling": rotary,
        "rotary_factor": scaled, "rotary_context": llama3, "rotary_low": llama3, "rotary_high": llama3,
        "local_rotary_base": (rotary[0] and window[0], 'position="rotary" and a window'),
        "norm_epsilon": any_norm, "norm_plus_one": any_norm, "norm_place": normed,
        "gated": mlp, "parallel": mlp,
        "window_pattern": window,
    }  # fmt: skip
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name, (read, needed) in readers.items():
        value = getattr(config, name)
        if not read and value != defaults[name]:
            raise ValueError(
                f"{name}={value!r} is read only with {needed}; leave it at {defaults[name]!r}"
            )
