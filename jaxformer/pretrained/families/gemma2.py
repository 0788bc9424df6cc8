"""Gemma 2: soft caps, norms before and after each layer that multiply by 1 + w, a scaled embedding, some windows.

Source: Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size", §2.
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

GEMMA_SIZES = llama.SIZES | {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256,
}  # fmt: skip
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
BOTH = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}


def take_gemma(
    fields: Fields, n_vocab: int, pattern: int, caps: Mapping[str, float | None]
) -> dict[str, Any]:
    """Return the Config's fields that Gemma 2 and 3 share.

    Args:
        fields: of the config.
        n_vocab: the default of vocab_size.
        pattern: without layer_types, every pattern-th layer has no window.
        caps: names and defaults of the soft caps that the family has.
    """
    shape = llama.take_shape(
        fields,
        sizes=GEMMA_SIZES | {"vocab_size": n_vocab},
        act=("hidden_activation", "gelu_pytorch_tanh"),
        tied=True,
    )
    fields.ignore("hidden_act")  # transformers' Gemma does not read it
    n_layers, d_head = shape["n_layers"], shape["d_head"]
    scalar = fields.take("query_pre_attn_scalar", "number", 256)
    if not scalar > 0:
        raise ValueError(f"{fields.where} has query_pre_attn_scalar={scalar}; it must be positive")
    usual = [GLOBAL if (i + 1) % pattern == 0 else LOCAL for i in range(n_layers)]
    window = fields.optional("sliding_window", "int", 4096)
    found = {name: fields.optional(name, "number", cap) for name, cap in caps.items()}
    attention_soft_cap, logit_soft_cap = map(found.get, CAPS)
    return shape | {
        "bias": llama.BIASES[fields.take("attention_bias", "bool", False), False],
        "norm_place": "both",
        "norm_plus_one": True,
        "embedding_scale": float(shape["d_model"] ** 0.5),
        "attention_scale": None if scalar == d_head else float(scalar) ** -0.5,
        "attention_soft_cap": None if attention_soft_cap is None else float(attention_soft_cap),
        "logit_soft_cap": None if logit_soft_cap is None else float(logit_soft_cap),
        **take_layer_types(fields, window, usual),
    }


def write_gemma(config: Config) -> dict[str, Any]:
    """Return the fields of config.json that Gemma 2 and 3 share."""
    scale = config.score_scale
    scalar = config.d_head if config.attention_scale is None else max(round(scale**-2), 1)
    if config.attention_scale is not None and scalar**-0.5 != scale:
        raise ValueError(f"attention_scale={scale} is not 1/√n for any integer n")
    unused_window = 4096  # without a window: transformers needs a number, but no layer uses it
    return llama.write_shape(config, "hidden_activation") | {
        "attention_bias": config.has_bias("qkv"), "query_pre_attn_scalar": scalar,
        "sliding_window": config.window or unused_window, "layer_types": write_layer_types(config),
        "attn_logit_softcapping": config.attention_soft_cap, "final_logit_softcapping": config.logit_soft_cap,
    }  # fmt: skip


def read(fields: Fields) -> Config:
    """Convert a Gemma2Config to a Config."""
    return Config.from_dict({**take_gemma(fields, 256_000, 2, CAPS), **take_rotary(fields)})


GEMMA2 = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    prefix="model.",
    weights=llama.weights(**BOTH),
    buffers=llama.BUFFERS,
    read=read,
    write=write_gemma,
)
