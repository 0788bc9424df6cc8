"""Rotary positions in Hugging Face configs, as transformers 5 and earlier versions write them."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families.hf_config import Fields

BASE = 10_000.0


def take_rotary(fields: Fields, *, part: tuple[int, float] | None = None) -> dict[str, Any]:
    """Return the Config's fields of rotary positions.

    Args:
        fields: of the config.
        part: for a family that may rotate only part of each head: the head width, and transformers' default
            fraction. None: the family rotates whole heads.

    Raises:
        ValueError: a kind of scaling that jaxformer does not have, or contradictory fields.
    """
    old, new = fields.nested("rope_scaling"), fields.nested("rope_parameters")
    if old.given and new.given and old.given != new.given:
        raise ValueError(
            f"{fields.where} has both rope_scaling and rope_parameters, which differ; keep one"
        )
    rope = old if old.given else new
    names = ("rope_theta", "rotary_emb_base") if part else ("rope_theta",)
    top_level_base = _take_alias(fields, names, BASE)
    base = float(rope.take("rope_theta", "number", top_level_base))
    chosen: dict[str, Any] = {"position": "rotary", "rotary.base": base}
    if part is None:
        for table in (fields, rope):
            table.demand("partial_rotary_factor", 1.0, None)
    else:
        width, usual = part
        top_level = _take_alias(fields, ("partial_rotary_factor", "rotary_pct"), usual)
        fraction = float(rope.take("partial_rotary_factor", "number", top_level))
        chosen["rotary.fraction"] = _whole_pairs(fields, width, fraction)
    max_length = fields.take("max_position_embeddings", "int", None)
    return chosen | take_scaling(rope, max_length)


def _take_alias(fields: Fields, names: tuple[str, ...], default: float) -> float:
    """Return a number that has several names; if more than one is present, they must agree."""
    given = {name: fields.take(name, "number", None) for name in names}
    values = {value for value in given.values() if value is not None}
    if len(values) > 1:
        raise ValueError(f"{fields.where} has {given}, which must all be the same number")
    return float(values.pop()) if values else default


def _whole_pairs(fields: Fields, width: int, fraction: float) -> float:
    """Return the fraction of a head that is rotated, after transformers rounds its coordinates down."""
    rotated = int(width * fraction)
    if rotated % 2:
        raise ValueError(
            f"{fields.where} rotates {rotated} of the {width} coordinates of a head ({fraction} of them, rounded "
            "down); jaxformer rotates pairs, so the number must be even"
        )
    return fraction if round(width * fraction) == rotated else rotated / width


def take_scaling(rope: Fields, max_length: int | None) -> dict[str, Any]:
    """Return the Config's fields of rotary scaling; `max_length` is llama3's default original context.

    Raises:
        ValueError: a kind of scaling that jaxformer does not have.
    """
    name = "rope_type" if "rope_type" in rope.given else "type"
    kind = rope.kind(name, ("default", "linear", "llama3"), "default")
    rope.ignore("type")
    chosen: dict[str, Any] = {}
    if kind is None:
        rope.ignore(*rope.left)  # without the kind they have no meaning
    elif kind == "default":
        # transformers reads neither of these for the default kind
        rope.ignore("factor", "original_max_position_embeddings")
    else:
        chosen = {"rotary.scaling": kind, "rotary.factor": float(rope.take("factor", "number"))}
        rope.ignore("original_max_position_embeddings")
    if kind == "llama3":
        chosen["rotary.original_context"] = rope.take(
            "original_max_position_embeddings", "int", max_length
        )
        chosen["rotary.low_turns"] = float(rope.take("low_freq_factor", "number"))
        chosen["rotary.high_turns"] = float(rope.take("high_freq_factor", "number"))
    rope.finish()
    return chosen


def write_rotary(config: Config) -> Mapping[str, Any]:
    """Return the table `rope_parameters` of a Config; if windowed layers have their own base, of the other layers."""
    table: dict[str, Any] = {"rope_type": "default", "rope_theta": float(config.rotary.base)}
    if config.rotary.scaling != "none":
        table |= {"rope_type": config.rotary.scaling, "factor": float(config.rotary.factor)}
    if config.rotary.scaling == "llama3":
        table |= {
            "original_max_position_embeddings": config.rotary.original_context,
            "low_freq_factor": float(config.rotary.low_turns),
            "high_freq_factor": float(config.rotary.high_turns),
        }
    return table
