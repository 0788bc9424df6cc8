"""OLMo 2: Llama with norms after the layers, not before, and norms over the queries and keys of all heads together.

Source: OLMo Team 2025, "2 OLMo 2 Furious", §3.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families import llama
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.hf_config import Fields
from jaxformer.pretrained.families.rotary import take_rotary

AFTER = {
    "post_attention_layernorm": "attn_post_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}


def read(fields: Fields) -> Config:
    """Convert an Olmo2Config to a Config."""
    shape = llama.take_shape(fields, sizes=llama.SIZES | {"vocab_size": 50304}, epsilon=1e-5)
    bias = llama.BIASES[fields.take("attention_bias", "bool", False), False]
    return Config.from_dict(
        {**shape, "bias": bias, "norm_place": "after", "qk_norm": "all", **take_rotary(fields)}
    )


def write(config: Config) -> Mapping[str, Any]:
    """Convert a Config to the fields of an Olmo2Config."""
    return llama.write_shape(config) | {"attention_bias": config.has_bias("qkv")}


OLMO2 = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    prefix="model.",
    weights=(*llama.weights(**AFTER), *llama.head_norms("n.h", "k.h")),
    buffers=llama.BUFFERS,
    read=read,
    write=write,
)
