"""GPT-NeoX: rotary positions on part of each head, attention and MLP in parallel.

One matrix holds Q, K and V, head by head.

Source: Black et al. 2022, "GPT-NeoX-20B". Pythia (Biderman et al. 2023) belongs to this family.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families.family import Family, Weight, linear, normed
from jaxformer.pretrained.families.hf_config import Fields, name_of
from jaxformer.pretrained.families.rotary import take_rotary, write_rotary


def read(fields: Fields) -> Config:
    """Convert a GPTNeoXConfig to a Config."""
    d, n = fields.heads("hidden_size", 6144, "num_attention_heads", 64)
    fields.ignore("attention_dropout", "hidden_dropout", "classifier_dropout")
    fields.ignore("attention_probs_dropout_prob", "hidden_dropout_prob")
    biased = fields.take("attention_bias", "bool", True)
    rotary = take_rotary(fields, part=(d // n, 0.25))
    return Config.from_dict({
        "n_layers": fields.layers("num_hidden_layers", 44),
        "d_model": d,
        "n_heads": n,
        "d_head": d // n,
        "d_mlp": fields.size("intermediate_size", 24576),
        "n_vocab": fields.size("vocab_size", 50432),
        "norm": "layer",
        "norm_epsilon": float(fields.take("layer_norm_eps", "number", 1e-5)),
        "activation": fields.activation("hidden_act", "gelu"),
        "bias": "all" if biased else "all_but_attention",
        "parallel": fields.take("use_parallel_residual", "bool", True),
        "tied": fields.take("tie_word_embeddings", "bool", False),
        **rotary,
    })  # fmt: skip


def write(config: Config) -> Mapping[str, Any]:
    """Convert a Config to the fields of a GPTNeoXConfig."""
    return {
        "hidden_size": config.d_model, "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers, "intermediate_size": config.d_mlp,
        "vocab_size": config.n_vocab, "layer_norm_eps": float(config.norm_epsilon),
        "hidden_act": name_of(config.activation, "gelu_pytorch_tanh"),
        "attention_bias": config.has_bias("qkv"), "use_parallel_residual": config.parallel,
        "tie_word_embeddings": config.tied,
        "rope_parameters": {**write_rotary(config), "partial_rotary_factor": config.rotary.fraction},
    }  # fmt: skip


_ATTENTION = "layers.{l}.attention."
_QKV = ("blocks.attn.W_Q", "blocks.attn.W_K", "blocks.attn.W_V")
GPT_NEOX = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    weights=(
        Weight("embed_in.weight", "v d", ("W_E",)),
        *normed("layers.{l}.input_layernorm", "blocks.attn_norm"),
        Weight(f"{_ATTENTION}query_key_value.weight", "n.*.h d", _QKV),
        Weight(
            f"{_ATTENTION}query_key_value.bias",
            "n.*.h",
            ("blocks.attn.b_Q", "blocks.attn.b_K", "blocks.attn.b_V"),
        ),
        *linear(f"{_ATTENTION}dense", "d n.h", "blocks.attn.W_O", "blocks.attn.b_O"),
        *normed("layers.{l}.post_attention_layernorm", "blocks.mlp_norm"),
        *linear("layers.{l}.mlp.dense_h_to_4h", "f d", "blocks.mlp.W_in", "blocks.mlp.b_in"),
        *linear("layers.{l}.mlp.dense_4h_to_h", "d f", "blocks.mlp.W_out", "blocks.mlp.b_out"),
        *normed("final_layer_norm", "final_norm"),
    ),
    head="embed_out.weight",
    other_head="lm_head.weight",  # in a state_dict of transformers 5
    buffers=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    read=read,
    write=write,
)
