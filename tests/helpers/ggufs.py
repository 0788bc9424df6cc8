"""GGUF files of the golden models, written as llama.cpp's converter writes them: its names, its permutations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.helpers.families import Golden

ARCHITECTURES = {
    "gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3, "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "olmo2": gguf.MODEL_ARCH.OLMO2,
}  # fmt: skip

Edit = Callable[[gguf.GGUFWriter], None]


def write(path: Path, record: Golden, *more: Edit) -> None:
    """The model as a GGUF file; `more` adds what llama.cpp would not."""
    config, family = record.config, record.config["model_type"]
    architecture = ARCHITECTURES[family]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    (_describe_gpt2 if family == "gpt2" else _describe)(writer, config)
    layers = config.get("n_layer") or config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(architecture, layers)
    for name, tensor in record.tensors.items():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own is not None, name
        writer.add_tensor(own, np.ascontiguousarray(_converted(name, tensor, config)))
    for edit in more:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _converted(name: str, tensor: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """A tensor as llama.cpp wants it."""
    family = config["model_type"]
    if family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return tensor.T
    if family.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    if family in ("llama", "mistral") and ".q_proj." in name:
        return _permuted(tensor, config["num_attention_heads"])
    if family in ("llama", "mistral") and ".k_proj." in name:
        return _permuted(tensor, config["num_key_value_heads"])
    return tensor


def _permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Each head's two halves, shuffled together."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _describe_gpt2(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    turns = config["rope_parameters"]
    turns = turns.get("full_attention", turns)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(turns["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if turns["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(turns["factor"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_rope_dimension_count(config["head_dim"])
    if config["model_type"].startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
