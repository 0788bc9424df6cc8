"""Llama 1 to 3, and what the families derived from it share: RMSNorms, rotary positions, gated MLPs.

Source: Touvron et al. 2023, "LLaMA"; Grattafiori et al. 2024, "The Llama 3 Herd of Models". SmolLM2 and
TinyLlama belong to this family.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Bias, Config
from jaxformer.pretrained.families.family import Family, Weight, linear
from jaxformer.pretrained.families.hf_config import Fields, name_of
from jaxformer.pretrained.families.rotary import take_rotary, write_rotary

BIASES: dict[tuple[bool, bool], Bias] = {
    (False, False): "none", (True, False): "attention",
    (False, True): "all_but_attention", (True, True): "all",
}  # fmt: skip
"""Config.bias, by whether attention has biases and whether the MLP has; RMSNorms never do."""


SIZES: dict[str, int | None] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None,
}  # fmt: skip
"""transformers' defaults for Llama; the derived families change some."""


def take_shape(
    fields: Fields,
    *,
    sizes: Mapping[str, int | None] = SIZES,
    act: tuple[str, str] = ("hidden_act", "silu"),
    epsilon: float = 1e-6,
    tied: bool = False,
) -> dict[str, Any]:
    """Return the Config's fields that all these families share, with transformers' defaults.

    Args:
        fields: of the config.
        sizes: the defaults of the sizes.
        act: the name of the activation's field, and its default.
        epsilon: the default of rms_norm_eps.
        tied: the default of tie_word_embeddings.

    Raises:
        ValueError: a width that is not a multiple of the number of heads, without head_dim.
    """
    apart = ("num_hidden_layers", "num_key_value_heads")
    size = {name: fields.size(name, own) for name, own in sizes.items() if name not in apart}
    d, n = size["hidden_size"], size["num_attention_heads"]
    if size["head_dim"] is None and d % n:
        raise ValueError(
            f"{fields.where} has hidden_size={d}, which is not a multiple of num_attention_heads={n}; give head_dim"
        )
    kv = fields.optional("num_key_value_heads", "int", sizes["num_key_value_heads"])
    fields.ignore("attention_dropout")
    return {
        "n_layers": fields.layers("num_hidden_layers", sizes["num_hidden_layers"] or 0),
        "d_model": d,
        "n_heads": n,
        "d_head": size["head_dim"] or d // n,
        "d_mlp": size["intermediate_size"],
        "n_vocab": size["vocab_size"],
        "n_kv_heads": None if kv == n else kv,
        "norm": "rms",
        "norm_epsilon": float(fields.take("rms_norm_eps", "number", epsilon)),
        "activation": fields.activation(*act),
        "gated": True,
        "tied": fields.take("tie_word_embeddings", "bool", tied),
    }


def write_shape(config: Config, act: str = "hidden_act") -> dict[str, Any]:
    """Return the shared fields of config.json, with `head_dim` written out."""
    return {
        "hidden_size": config.d_model, "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads or config.n_heads, "head_dim": config.d_head,
        "vocab_size": config.n_vocab, "rms_norm_eps": float(config.norm_epsilon),
        act: name_of(config.activation, "gelu_pytorch_tanh"), "tie_word_embeddings": config.tied,
        "rope_parameters": write_rotary(config), "max_position_embeddings": 32768,
    }  # fmt: skip


def weights(**norms: str) -> tuple[Weight, ...]:
    """Return the tensors of these families. `norms` maps a norm's name in a layer to its parameter."""
    attention = (
        *linear("layers.{l}.self_attn.q_proj", "n.h d", "blocks.attn.W_Q", "blocks.attn.b_Q"),
        *linear("layers.{l}.self_attn.k_proj", "k.h d", "blocks.attn.W_K", "blocks.attn.b_K"),
        *linear("layers.{l}.self_attn.v_proj", "k.h d", "blocks.attn.W_V", "blocks.attn.b_V"),
        *linear("layers.{l}.self_attn.o_proj", "d n.h", "blocks.attn.W_O", "blocks.attn.b_O"),
    )
    mlp = (
        *linear("layers.{l}.mlp.gate_proj", "f d", "blocks.mlp.W_gate", "blocks.mlp.b_gate"),
        *linear("layers.{l}.mlp.up_proj", "f d", "blocks.mlp.W_in", "blocks.mlp.b_in"),
        *linear("layers.{l}.mlp.down_proj", "d f", "blocks.mlp.W_out", "blocks.mlp.b_out"),
    )
    in_layer = tuple(
        Weight(f"layers.{{l}}.{name}.weight", "d", (f"blocks.{place}.w",))
        for name, place in norms.items()
    )
    embedding = Weight("embed_tokens.weight", "v d", ("W_E",))
    return (embedding, *attention, *mlp, *in_layer, Weight("norm.weight", "d", ("final_norm.w",)))


def head_norms(queries: str = "h", keys: str = "h") -> tuple[Weight, Weight]:
    """Return the norms on queries and keys, whose weights have these axes."""
    return (
        Weight("layers.{l}.self_attn.q_norm.weight", queries, ("blocks.attn.norm_Q",)),
        Weight("layers.{l}.self_attn.k_norm.weight", keys, ("blocks.attn.norm_K",)),
    )


BEFORE = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
"""The norms of Llama, which has them before each layer."""
BUFFERS = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def read(fields: Fields) -> Config:
    """Convert a LlamaConfig to a Config."""
    shape = take_shape(fields)
    fields.demand("rope_interleaved", False)
    biased = fields.take("attention_bias", "bool", False), fields.take("mlp_bias", "bool", False)
    return Config.from_dict({**shape, "bias": BIASES[biased], **take_rotary(fields)})


def write(config: Config) -> Mapping[str, Any]:
    """Convert a Config to the fields of a LlamaConfig."""
    biased = {"attention_bias": config.has_bias("qkv"), "mlp_bias": config.has_bias("mlp")}
    return write_shape(config) | biased


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    prefix="model.",
    weights=weights(**BEFORE),
    buffers=BUFFERS,
    read=read,
    write=write,
)
