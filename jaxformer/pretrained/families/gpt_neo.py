"""GPT-Neo: unscaled attention, a window in every other layer, no biases on queries, keys and values.

Source: Black et al. 2021, "GPT-Neo". The TinyStories models (Eldan & Li 2023) belong to this family.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.pretrained.families.family import Family, Weight, linear, normed
from jaxformer.pretrained.families.gpt2 import SUMMARY
from jaxformer.pretrained.families.hf_config import Fields, name_of
from jaxformer.pretrained.families.layer_types import windows


def read(fields: Fields) -> Config:
    """Convert a GPTNeoConfig to a Config."""
    d, n = fields.heads("hidden_size", 2048, "num_heads", 16)
    n_layers = fields.layers("num_layers", 24)
    window = fields.size("window_size", 256)
    fields.ignore("resid_dropout", "embed_dropout", "attention_dropout", "classifier_dropout")
    fields.ignore(*SUMMARY)
    return Config(
        n_layers=n_layers,
        d_model=d,
        n_heads=n,
        d_head=d // n,
        d_mlp=fields.size("intermediate_size", None) or 4 * d,
        n_vocab=fields.size("vocab_size", 50257),
        position="learned",
        n_context=fields.size("max_position_embeddings", 2048),
        norm="layer",
        norm_epsilon=float(fields.take("layer_norm_epsilon", "number", 1e-5)),
        activation=fields.activation("activation_function", "gelu_new"),
        bias="all_but_qkv",
        tied=fields.take("tie_word_embeddings", "bool", True),
        attention_scale=1.0,
        **windows(fields, window, layer_types(fields, n_layers), "attention_types"),
    )


def layer_types(fields: Fields, n_layers: int) -> list[str]:
    """Return the type of each layer from `[[["global", "local"], 12]]`: these two alternate, 12 times.

    Raises:
        ValueError: another form, or another number of layers.
    """
    groups = fields.take("attention_types", "list", None)
    groups = [[["global", "local"], n_layers // 2]] if groups is None else groups
    try:
        types = [str(kind) for kinds, times in groups for _ in range(times) for kind in kinds]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{fields.where} has attention_types={groups!r}; it must be like [[['global', 'local'], 12]]"
        ) from error
    if len(types) != n_layers:
        raise ValueError(
            f"{fields.where} has attention_types for {len(types)} layers, but num_layers={n_layers}"
        )
    listed = fields.take("attention_layers", "list", types)
    if listed != types:
        raise ValueError(f"{fields.where} has attention_layers that contradict its attention_types")
    return types


def write(config: Config) -> Mapping[str, Any]:
    """Convert a Config to the fields of a GPTNeoConfig."""
    kinds = ["local" if local else "global" for local in config.local_layers]
    return {
        "hidden_size": config.d_model, "num_heads": config.n_heads, "num_layers": config.n_layers,
        "intermediate_size": config.d_mlp, "vocab_size": config.n_vocab,
        "max_position_embeddings": config.n_context, "layer_norm_epsilon": float(config.norm_epsilon),
        "activation_function": name_of(config.activation, "gelu_new"),
        "tie_word_embeddings": config.tied, "window_size": config.window or 256,
        "attention_types": [[kinds, 1]],
    }  # fmt: skip


_ATTENTION = "h.{l}.attn.attention."
GPT_NEO = Family(
    name="gpt_neo",
    architecture="GPTNeoForCausalLM",
    prefix="transformer.",
    weights=(
        Weight("wte.weight", "v d", ("W_E",)),
        Weight("wpe.weight", "c d", ("W_pos",)),
        *normed("h.{l}.ln_1", "blocks.attn_norm"),
        Weight(f"{_ATTENTION}q_proj.weight", "n.h d", ("blocks.attn.W_Q",)),
        Weight(f"{_ATTENTION}k_proj.weight", "k.h d", ("blocks.attn.W_K",)),
        Weight(f"{_ATTENTION}v_proj.weight", "k.h d", ("blocks.attn.W_V",)),
        *linear(f"{_ATTENTION}out_proj", "d n.h", "blocks.attn.W_O", "blocks.attn.b_O"),
        *normed("h.{l}.ln_2", "blocks.mlp_norm"),
        *linear("h.{l}.mlp.c_fc", "f d", "blocks.mlp.W_in", "blocks.mlp.b_in"),
        *linear("h.{l}.mlp.c_proj", "d f", "blocks.mlp.W_out", "blocks.mlp.b_out"),
        *normed("ln_f", "final_norm"),
    ),
    buffers=r"h\.\d+\.attn\.attention\.(bias|masked_bias)",
    read=read,
    write=write,
)
