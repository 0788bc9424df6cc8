"""GPT-2: learned positions, LayerNorms, biases everywhere, a tied unembedding.

Its matrices are stored as [in out], with Q, K and V side by side in one.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families.family import Family, Weight, normed
from jaxformer.pretrained.families.hf_config import Fields, name_of

SUMMARY = (
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
    "summary_first_dropout",
)  # fmt: skip
"""Fields of classification models."""


def read(fields: Fields) -> Config:
    """Convert a GPT2Config to a Config."""
    d, n = fields.heads("n_embd", 768, "n_head", 12)
    scaled = fields.take("scale_attn_weights", "bool", True)
    # The first computes attention in float32, as jaxformer always does.
    fields.ignore("reorder_and_upcast_attn", "n_ctx")
    fields.ignore("resid_pdrop", "embd_pdrop", "attn_pdrop", *SUMMARY)
    return Config(
        n_layers=fields.layers("n_layer", 12),
        d_model=d,
        n_heads=n,
        d_head=d // n,
        d_mlp=fields.size("n_inner", None) or 4 * d,
        n_vocab=fields.size("vocab_size", 50257),
        position="learned",
        n_context=fields.size("n_positions", 1024),
        norm="layer",
        norm_epsilon=float(fields.take("layer_norm_epsilon", "number", 1e-5)),
        activation=fields.activation("activation_function", "gelu_new"),
        bias="all",
        tied=fields.take("tie_word_embeddings", "bool", True),
        attention_scale=None if scaled else 1.0,
        scale_scores_by_layer=fields.take("scale_attn_by_inverse_layer_idx", "bool", False),
    )


def write(config: Config) -> Mapping[str, Any]:
    """Convert a Config to the fields of a GPT2Config."""
    return {
        "n_embd": config.d_model, "n_head": config.n_heads, "n_layer": config.n_layers,
        "n_inner": config.d_mlp, "vocab_size": config.n_vocab, "n_positions": config.n_context,
        "layer_norm_epsilon": float(config.norm_epsilon),
        "activation_function": name_of(config.activation, "gelu_new"),
        "tie_word_embeddings": config.tied,
        "scale_attn_weights": config.attention_scale is None,
        "scale_attn_by_inverse_layer_idx": config.scale_scores_by_layer,
    }  # fmt: skip


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    weights=(
        Weight("wte.weight", "v d", ("W_E",)),
        Weight("wpe.weight", "c d", ("W_pos",)),
        *normed("h.{l}.ln_1", "blocks.attn_norm"),
        Weight(
            "h.{l}.attn.c_attn.weight",
            "d *.n.h",
            ("blocks.attn.W_Q", "blocks.attn.W_K", "blocks.attn.W_V"),
        ),
        Weight(
            "h.{l}.attn.c_attn.bias",
            "*.n.h",
            ("blocks.attn.b_Q", "blocks.attn.b_K", "blocks.attn.b_V"),
        ),
        Weight("h.{l}.attn.c_proj.weight", "n.h d", ("blocks.attn.W_O",)),
        Weight("h.{l}.attn.c_proj.bias", "d", ("blocks.attn.b_O",)),
        *normed("h.{l}.ln_2", "blocks.mlp_norm"),
        Weight("h.{l}.mlp.c_fc.weight", "d f", ("blocks.mlp.W_in",)),
        Weight("h.{l}.mlp.c_fc.bias", "f", ("blocks.mlp.b_in",)),
        Weight("h.{l}.mlp.c_proj.weight", "f d", ("blocks.mlp.W_out",)),
        Weight("h.{l}.mlp.c_proj.bias", "d", ("blocks.mlp.b_out",)),
        *normed("ln_f", "final_norm"),
    ),
    buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
    read=read,
    write=write,
)
