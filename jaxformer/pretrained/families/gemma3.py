"""Gemma 3 (text only): Gemma 2 with norms on queries and keys instead of soft caps, and two rotary bases.

Source: Gemma Team 2025, "Gemma 3 Technical Report", §2.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.gemma2 import BOTH, take_gemma, write_gemma
from jaxformer.pretrained.families.hf_config import Fields
from jaxformer.pretrained.families.llama import BUFFERS, head_norms, weights
from jaxformer.pretrained.families.rotary import take_scaling, write_rotary


def read(fields: Fields) -> Config:
    """Convert a Gemma3TextConfig to a Config."""
    period = fields.take("sliding_window_pattern", "int", 6)
    fields.ignore("_sliding_window_pattern")  # transformers writes it and does not read it
    # transformers' Gemma 3 reads this field but does not use it, so its meaning is undefined.
    fields.demand("attn_logit_softcapping", None)
    caps = {"final_logit_softcapping": None}
    shape = take_gemma(fields, 262_208, max(period, 1), caps)
    return Config.from_dict(
        {**shape, "qk_norm": "head", **take_bases(fields, windowed="window" in shape)}
    )


def take_bases(fields: Fields, *, windowed: bool) -> dict[str, Any]:
    """Return the Config's rotary fields. Windowed layers have a separate base, without scaling."""
    both = fields.nested("rope_parameters")
    full, local = both.nested("full_attention"), both.nested("sliding_attention")
    both.finish()
    old = fields.nested("rope_scaling")
    old_base = fields.take("rope_theta", "number", 1_000_000.0)
    old_local = fields.take("rope_local_base_freq", "number", 10_000.0)
    if old.given:
        full = Fields(full.given | old.given, old.where, None, old.ignored, old.table)
    base = float(full.take("rope_theta", "number", old_base))
    local_base = float(local.take("rope_theta", "number", old_local))
    local.demand("rope_type", "default")
    local.finish()
    chosen = {"position": "rotary", "rotary.base": base}
    if windowed and local_base != base:
        chosen["rotary.local_base"] = local_base
    scaling = take_scaling(full, fields.take("max_position_embeddings", "int", None))
    if windowed and scaling:
        chosen["rotary.local_base"] = local_base
    return chosen | scaling


def write(config: Config) -> Mapping[str, Any]:
    """Convert a Config to the fields of a Gemma3TextConfig."""
    local = config.rotary.base if config.rotary.local_base is None else config.rotary.local_base
    return write_gemma(config) | {
        "rope_parameters": {
            "full_attention": write_rotary(config),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    }


GEMMA3 = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    prefix="model.",
    weights=(*weights(**BOTH), *head_norms()),
    buffers=BUFFERS,
    read=read,
    write=write,
)
