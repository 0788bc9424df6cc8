"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and optional windows in the later layers.

Source: Yang et al. 2024, "Qwen2 Technical Report".
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families import llama
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.hf_config import Fields
from jaxformer.pretrained.families.layer_types import (
    GLOBAL,
    LOCAL,
    take_layer_types,
    write_layer_types,
)
from jaxformer.pretrained.families.rotary import take_rotary

QWEN_SIZES = llama.SIZES | {
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "num_key_value_heads": 32,
}


def take_late_windows(fields: Fields, n_layers: int) -> dict[str, Any]:
    """Return the Config's windows: in the layers that layer_types names, or from max_window_layers on."""
    window = fields.optional("sliding_window", "int", 4096)
    window = window if fields.take("use_sliding_window", "bool", False) else None
    first = fields.take("max_window_layers", "int", 28)
    late = [LOCAL if window and i >= first else GLOBAL for i in range(n_layers)]
    return take_layer_types(fields, window, late)


def write_windows(config: Config) -> dict[str, Any]:
    """Return the fields of config.json about windows."""
    return {
        "use_sliding_window": config.window is not None, "sliding_window": config.window,
        "layer_types": write_layer_types(config), "max_window_layers": config.n_layers,
    }  # fmt: skip


def read(fields: Fields) -> Config:
    """Convert a Qwen2Config to a Config."""
    fields.demand("use_mrope", False)
    shape = llama.take_shape(fields, sizes=QWEN_SIZES)
    windows = take_late_windows(fields, shape["n_layers"])
    return Config.from_dict({**shape, "bias": "qkv", **windows, **take_rotary(fields)})


def write(config: Config) -> Mapping[str, Any]:
    """Convert a Config to the fields of a Qwen2Config."""
    return llama.write_shape(config) | write_windows(config)


QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    prefix="model.",
    weights=llama.weights(**llama.BEFORE),
    buffers=llama.BUFFERS,
    read=read,
    write=write,
)
