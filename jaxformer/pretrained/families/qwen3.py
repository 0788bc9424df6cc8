"""Qwen 3: Llama with a norm on each head's query and key.

Source: Yang et al. 2025, "Qwen3 Technical Report", §2.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.fields import Fields
from jaxformer.pretrained.families.llama import (
    BEFORE,
    BIASES,
    BUFFERS,
    head_norms,
    take_shape,
    weights,
    write_shape,
)
from jaxformer.pretrained.families.qwen2 import QWEN_SIZES, take_late_windows, write_windows
from jaxformer.pretrained.families.rotary import take_rotary


def read(fields: Fields) -> Config:
    """Our Config of a Qwen3Config."""
    shape = take_shape(fields, sizes=QWEN_SIZES | {"head_dim": 128})
    bias = BIASES[fields.take("attention_bias", "bool", False), False]
    windows = take_late_windows(fields, shape["n_layers"])
    return Config(**shape, bias=bias, qk_norm="head", **windows, **take_rotary(fields))


def write(config: Config) -> Mapping[str, Any]:
    """A Qwen3Config of ours."""
    return write_shape(config) | write_windows(config) | {"attention_bias": config.has_bias("qkv")}


QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    prefix="model.",
    weights=(*weights(**BEFORE), *head_norms()),
    buffers=BUFFERS,
    read=read,
    write=write,
)
