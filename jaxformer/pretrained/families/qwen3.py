"""Qwen 3: Llama with a norm on each head's query and key.

Source: Yang et al. 2025, "Qwen3 Technical Report", §2.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families import llama
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.hf_config import Fields
from jaxformer.pretrained.families.qwen2 import QWEN_SIZES, take_late_windows, write_windows
from jaxformer.pretrained.families.rotary import take_rotary


def read(fields: Fields) -> Config:
    """Convert a Qwen3Config to a Config."""
    shape = llama.take_shape(fields, sizes=QWEN_SIZES | {"head_dim": 128})
    bias = llama.BIASES[fields.take("attention_bias", "bool", False), False]
    windows = take_late_windows(fields, shape["n_layers"])
    return Config.from_dict(
        {**shape, "bias": bias, "qk_norm": "head", **windows, **take_rotary(fields)}
    )


def write(config: Config) -> Mapping[str, Any]:
    """Convert a Config to the fields of a Qwen3Config."""
    return (
        llama.write_shape(config)
        | write_windows(config)
        | {"attention_bias": config.has_bias("qkv")}
    )


QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    prefix="model.",
    weights=(*llama.weights(**llama.BEFORE), *llama.head_norms()),
    buffers=llama.BUFFERS,
    read=read,
    write=write,
)
