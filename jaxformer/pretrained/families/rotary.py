"""Rotary positions in foreign configs: as transformers 5 writes them, and as it did before."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families.fields import Fields

BASE = 10_000.0


def take_rotary(fields: Fields, *, part: tuple[int, float] | None = None) -> dict[str, Any]:
    """Our fields of rotary positions.

    Args:
        fields: of the config.
        part: of a family that may turn a part of each head: its width, and the part that transformers takes where
            the file has none. The others turn all of it.

    Raises:
        ValueError: a kind of scaling that jaxformer does not have, or a config that says two things.
    """
    old, new = fields.nested("rope_scaling"), fields.nested("rope_parameters")
    if old.values and new.values and old.values != new.values:
        raise ValueError(f"{fields.where} has both rope_scaling and rope_parameters; keep one")
    turns = old if old.values else new
    names = ("rope_theta", "rotary_emb_base") if part else ("rope_theta",)
    other_base = _one_of(fields, names, BASE)
    base = float(turns.take("rope_theta", "number", other_base))
    chosen: dict[str, Any] = {"position": "rotary", "rotary_base": base}
    if part is None:
        for place in (fields, turns):
            place.demand("partial_rotary_factor", 1.0, None)
    else:
        width, usual = part
        other = _one_of(fields, ("partial_rotary_factor", "rotary_pct"), usual)
        fraction = float(turns.take("partial_rotary_factor", "number", other))
        chosen["rotary_fraction"] = _whole_pairs(fields, width, fraction)
    most = fields.take("max_position_embeddings", "int", None)
    return chosen | take_scaling(turns, most)


def _one_of(fields: Fields, names: tuple[str, ...], default: float) -> float:
    """A number that a config may have by several names, all of which must agree."""
    given = {name: fields.take(name, "number", None) for name in names}
    values = {value for value in given.values() if value is not None}
    if len(values) > 1:
        raise ValueError(f"{fields.where} has {given}, which must be one number")
    return float(values.pop()) if values else default


def _whole_pairs(fields: Fields, width: int, fraction: float) -> float:
    """The fraction of a head that transformers turns, which rounds its coordinates down."""
    turned = int(width * fraction)
    if turned % 2:
        raise ValueError(
            f"{fields.where} turns {turned} of the {width} coordinates of a head ({fraction} of them, rounded "
            "down); jaxformer turns pairs"
        )
    return fraction if round(width * fraction) == turned else turned / width


def take_scaling(turns: Fields, most: int | None) -> dict[str, Any]:
    """Our fields of how rotary is slowed; `most` is the config's longest sequence.

    Raises:
        ValueError: a kind that jaxformer does not have.
    """
    kind = turns.take("rope_type", "text", turns.take("type", "text", "default"))
    chosen: dict[str, Any] = {}
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(
            f"{turns.where} has rope_type={kind!r}; jaxformer has 'default', 'linear' and 'llama3'"
        )
    if kind == "default":
        # transformers reads neither of these for the default kind
        turns.ignore("factor", "original_max_position_embeddings")
    else:
        chosen = {"rotary_scaling": kind, "rotary_factor": float(turns.take("factor", "number"))}
        turns.ignore("original_max_position_embeddings")
    if kind == "llama3":
        chosen["rotary_context"] = turns.take("original_max_position_embeddings", "int", most)
        chosen["rotary_low"] = float(turns.take("low_freq_factor", "number"))
        chosen["rotary_high"] = float(turns.take("high_freq_factor", "number"))
    turns.finish()
    return chosen


def write_rotary(config: Config) -> Mapping[str, Any]:
    """The table `rope_parameters` of a Config, of its layers without a window where the two differ."""
    table: dict[str, Any] = {"rope_type": "default", "rope_theta": float(config.rotary_base)}
    if config.rotary_scaling != "none":
        table |= {"rope_type": config.rotary_scaling, "factor": float(config.rotary_factor)}
    if config.rotary_scaling == "llama3":
        table |= {
            "original_max_position_embeddings": config.rotary_context,
            "low_freq_factor": float(config.rotary_low),
            "high_freq_factor": float(config.rotary_high),
        }
    return table
