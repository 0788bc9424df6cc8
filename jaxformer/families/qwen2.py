"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and windows in the later layers if asked for.

Source: Yang et al. 2024, "Qwen2 Technical Report".
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.families.family import Family
from jaxformer.families.fields import Fields
from jaxformer.families.llama import BEFORE, BUFFERS, take_shape, weights, write_shape
from jaxformer.families.rotary import take_rotary, take_windows, write_layer_types

SIZES = {
    "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "vocab_size": 151936,
    "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": None,
}  # fmt: skip


def take_late_windows(fields: Fields, n_layers: int) -> dict[str, Any]:
    """Windows in all layers from max_window_layers on, or in those that layer_types names."""
    window = fields.optional("sliding_window", "int", 4096)
    asked = fields.take("use_sliding_window", "bool", False)
    window = window if asked else None
    first = fields.take("max_window_layers", "int", 28)
    late = [
        "sliding_attention" if asked and window and i >= first else "full_attention"
        for i in range(n_layers)
    ]
    types = fields.take("layer_types", "list", None) or late
    if len(types) != n_layers:
        raise ValueError(
            f"{fields.where} has {len(types)} layer_types, and num_hidden_layers={n_layers}"
        )
    return take_windows(fields, window, types)


def write_windows(config: Config) -> dict[str, Any]:
    """The same of ours."""
    return {
        "use_sliding_window": config.window is not None, "sliding_window": config.window,
        "layer_types": write_layer_types(config), "max_window_layers": config.n_layers,
    }  # fmt: skip


def read(fields: Fields) -> Config:
    """Our Config of a Qwen2Config."""
    fields.demand("use_mrope", False)
    shape = take_shape(fields, sizes=SIZES)
    windows = take_late_windows(fields, shape["n_layers"])
    return Config(**shape, bias="qkv", **windows, **take_rotary(fields))


def write(config: Config) -> Mapping[str, Any]:
    """A Qwen2Config of ours."""
    return write_shape(config) | write_windows(config)


QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    prefix="model.",
    weights=weights(**BEFORE),
    buffers=BUFFERS,
    read=read,
    write=write,
)
