"""Mistral: Llama with a window in every layer.

Source: Jiang et al. 2023, "Mistral 7B".
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families import llama
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.hf_config import Fields
from jaxformer.pretrained.families.rotary import take_rotary


def read(fields: Fields) -> Config:
    """Convert a MistralConfig to a Config."""
    own = {"intermediate_size": 14336, "num_key_value_heads": 8}
    shape = llama.take_shape(fields, sizes=llama.SIZES | own)
    window = fields.optional("sliding_window", "int", 4096)
    return Config.from_dict({**shape, "window": window, **take_rotary(fields)})


def write(config: Config) -> Mapping[str, Any]:
    """Convert a Config to the fields of a MistralConfig."""
    return llama.write_shape(config) | {"sliding_window": config.window}


MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    prefix="model.",
    weights=llama.weights(**llama.BEFORE),
    buffers=llama.BUFFERS,
    read=read,
    write=write,
)
