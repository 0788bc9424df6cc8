"""GGUF's names of config fields, tensors and architectures, mapped to those of transformers.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxformer.pretrained.families import FAMILIES
from jaxformer.pretrained.families.family import Family

COMMON = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "vocab_size": "vocab_size",
}
"""A GGUF field, without the architecture before it, to the field of transformers."""

GPT = {
    "block_count": "n_layer", "embedding_length": "n_embd", "feed_forward_length": "n_inner",
    "attention.head_count": "n_head", "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "context_length": "n_positions", "vocab_size": "vocab_size",
}  # fmt: skip
"""The fields of GPT-2."""

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "blk.{l}.attn_norm": "layers.{l}.input_layernorm",
    "blk.{l}.ffn_norm": "layers.{l}.post_attention_layernorm",
    "blk.{l}.attn_q": "layers.{l}.self_attn.q_proj",
    "blk.{l}.attn_k": "layers.{l}.self_attn.k_proj",
    "blk.{l}.attn_v": "layers.{l}.self_attn.v_proj",
    "blk.{l}.attn_output": "layers.{l}.self_attn.o_proj",
    "blk.{l}.attn_q_norm": "layers.{l}.self_attn.q_norm",
    "blk.{l}.attn_k_norm": "layers.{l}.self_attn.k_norm",
    "blk.{l}.ffn_gate": "layers.{l}.mlp.gate_proj",
    "blk.{l}.ffn_up": "layers.{l}.mlp.up_proj",
    "blk.{l}.ffn_down": "layers.{l}.mlp.down_proj",
}
"""A GGUF tensor to transformers' name, for Llama and the families derived from it."""

POST_NORMS = {
    "blk.{l}.post_attention_norm": "layers.{l}.post_attention_layernorm",
    "blk.{l}.post_ffw_norm": "layers.{l}.post_feedforward_layernorm",
}
BOTH_NORMS = POST_NORMS | {"blk.{l}.ffn_norm": "layers.{l}.pre_feedforward_layernorm"}

GPT_NAMES = {
    "token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f",
    "blk.{l}.attn_norm": "h.{l}.ln_1", "blk.{l}.ffn_norm": "h.{l}.ln_2",
    "blk.{l}.attn_qkv": "h.{l}.attn.c_attn", "blk.{l}.attn_output": "h.{l}.attn.c_proj",
    "blk.{l}.ffn_up": "h.{l}.mlp.c_fc", "blk.{l}.ffn_down": "h.{l}.mlp.c_proj",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """A GGUF architecture: how its files differ from those of the family in transformers."""

    family: Family
    fields: Mapping[str, str]
    names: Mapping[str, str]
    paired: bool = False
    """the rows of Q and K are interleaved, because llama.cpp rotates neighbouring coordinates instead of halves"""
    largest: int = 0
    """Gemma: the number of layers of its largest model, which scales scores by d_model / n_heads instead of d_head;
    llama.cpp applies this rule and files do not record it"""
    implied: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """transformers' fields that llama.cpp has fixed values for"""
    transposed: bool = False
    """transformers stores the family's matrices as [in out], GGUF as [out in]"""


DIALECTS = {
    "llama": Dialect(family=FAMILIES["llama"], fields=COMMON, names=NAMES, paired=True),
    "gpt2": Dialect(
        family=FAMILIES["gpt2"],
        fields=GPT,
        names=GPT_NAMES,
        transposed=True,
        implied={"activation_function": "gelu_new"},
    ),
    "qwen2": Dialect(family=FAMILIES["qwen2"], fields=COMMON, names=NAMES),
    "qwen3": Dialect(family=FAMILIES["qwen3"], fields=COMMON, names=NAMES),
    "gemma2": Dialect(
        family=FAMILIES["gemma2"], fields=COMMON, names=NAMES | BOTH_NORMS, largest=46
    ),
    "gemma3": Dialect(
        family=FAMILIES["gemma3_text"],
        fields=COMMON | {"rope.freq_base_swa": "rope_local_base_freq"},
        names=NAMES | BOTH_NORMS,
        largest=62,
    ),
    "olmo2": Dialect(family=FAMILIES["olmo2"], fields=COMMON, names=NAMES | POST_NORMS),
}
"""The architectures by `general.architecture`. Files of Mistral's models have llama there."""
