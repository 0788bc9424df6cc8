"""Mistral: Llama with a window in every layer.

Source: Jiang et al. 2023, "Mistral 7B".
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.fields import Fields
from jaxformer.pretrained.families.llama import (
    BEFORE,
    BUFFERS,
    SIZES,
    take_shape,
    weights,
    write_shape,
)
from jaxformer.pretrained.families.rotary import take_rotary


def read(fields: Fields) -> Config:
    """Our Config of a MistralConfig."""
    own = {"intermediate_size": 14336, "num_key_value_heads": 8}
    shape = take_shape(fields, sizes=SIZES | own)
    window = fields.optional("sliding_window", "int", 4096)
    return Config(**shape, window=window, **take_rotary(fields))


def write(config: Config) -> Mapping[str, Any]:
    """A MistralConfig of ours."""
    return write_shape(config) | {"sliding_window": config.window}


MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    prefix="model.",
    weights=weights(**BEFORE),
    buffers=BUFFERS,
    read=read,
    write=write,
)
