"""Tiny models of every family, with each optional feature on and off: what the tests compare with transformers."""

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxformer import Config, forward
from jaxformer.pretrained.families import FAMILIES

LLAMA = {
    "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 24, "max_position_embeddings": 64, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GPT2 = {
    "n_embd": 16, "n_layer": 3, "n_head": 4, "vocab_size": 24, "n_positions": 32,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
NEO = {
    "hidden_size": 16, "num_layers": 3, "num_heads": 4, "vocab_size": 24, "max_position_embeddings": 32,
    "window_size": 3, "attention_types": [[["global", "local"], 1], [["global"], 1]],
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
NEOX = {
    "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 24, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
ONE_KV = {"num_key_value_heads": 1}
LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}
LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 0.5,
        "high_freq_factor": 2.0, "original_max_position_embeddings": 24,
    }
}  # fmt: skip
TYPES = {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
GEMMA = LLAMA | {"head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": 8}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    f"{family}-{name}": (family, model, shape | change)
    for family, model, shape, changes in (
        ("gpt2", "GPT2LMHeadModel", GPT2, {
            "plain": {}, "untied": {"tie_word_embeddings": False}, "unscaled": {"scale_attn_weights": False},
            "by_depth": {"scale_attn_by_inverse_layer_idx": True}, "upcast": {"reorder_and_upcast_attn": True},
            "relu": {"activation_function": "relu", "n_inner": 20, "layer_norm_epsilon": 0.01},
            "gelu": {"activation_function": "gelu"},
        }),
        ("gpt_neo", "GPTNeoForCausalLM", NEO, {
            "plain": {}, "untied": {"tie_word_embeddings": False}, "global": {"attention_types": [[["global"], 3]]},
            "local": {"attention_types": [[["local"], 3]], "window_size": 4, "intermediate_size": 20},
        }),
        ("gpt_neox", "GPTNeoXForCausalLM", NEOX, {
            "plain": {}, "serial": {"use_parallel_residual": False}, "no_bias": {"attention_bias": False},
            "all_rotary": {"rope_parameters": {
                "rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 1.0}},
            "tied": {"tie_word_embeddings": True, "hidden_act": "gelu_new", "layer_norm_eps": 0.01},
            "linear": {"rope_parameters": LINEAR["rope_parameters"] | {"partial_rotary_factor": 0.5}},
            "rounded": {"hidden_size": 44, "rope_parameters": {
                "rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.3}},
        }),
        ("llama", "LlamaForCausalLM", LLAMA, {
            "plain": {}, "tied": {"tie_word_embeddings": True}, "multi_query": ONE_KV,
            "no_groups": {"num_key_value_heads": 4}, "head_dim": {"head_dim": 6}, "linear": LINEAR, "llama3": LLAMA3,
            "attention_bias": {"attention_bias": True}, "mlp_bias": {"mlp_bias": True},
            "biases": {"attention_bias": True, "mlp_bias": True}, "gelu": {"hidden_act": "gelu", "rms_norm_eps": 0.01},
        }),
        ("mistral", "MistralForCausalLM", LLAMA, {
            "plain": {"sliding_window": 3}, "no_window": {"sliding_window": None},
            "head_dim": {"head_dim": 6, "sliding_window": 4, "tie_word_embeddings": True},
        }),
        ("qwen2", "Qwen2ForCausalLM", LLAMA, {
            "plain": {}, "tied": {"tie_word_embeddings": True}, "window": QWEN_WINDOW,
            "head_dim": {"head_dim": 6},
            "types": {"use_sliding_window": True, "sliding_window": 3} | TYPES, "linear": LINEAR,
        }),
        ("qwen3", "Qwen3ForCausalLM", LLAMA | {"head_dim": 6}, {
            "plain": {}, "tied": {"tie_word_embeddings": True}, "bias": {"attention_bias": True}, "window": QWEN_WINDOW,
            "llama3": LLAMA3,
        }),
        ("gemma2", "Gemma2ForCausalLM", GEMMA, {
            "plain": {}, "no_caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            "low_caps": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 6.0},
            "scale": {"query_pre_attn_scalar": 5}, "bias": {"attention_bias": True}, "types": TYPES,
            "untied": {"tie_word_embeddings": False, "hidden_size": 12},
        }),
        ("gemma3_text", "Gemma3ForCausalLM", GEMMA, {
            "plain": {}, "types": TYPES, "cap": {"final_logit_softcapping": 6.0},
            "bias": {"attention_bias": True},
            "bases": TYPES | {"rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            }},
        }),
        ("olmo2", "Olmo2ForCausalLM", LLAMA, {
            "plain": {}, "no_groups": {"num_key_value_heads": 4}, "bias": {"attention_bias": True},
            "tied": {"tie_word_embeddings": True, "rms_norm_eps": 0.01},
        }),
    )
    for name, change in changes.items()
}  # fmt: skip
"""By name: model_type, class, and the arguments of its config."""

ONE_EACH = [next(case for case, (own, _, _) in CASES.items() if own == f) for f in FAMILIES]
"""Of each family one case."""

TOKENS = [3, 17, 8, 8, 0, 23, 5, 11, 2, 9]
"""Longer than every window."""

GOLDEN = Path(__file__).parents[1] / "golden"


class Golden(NamedTuple):
    """What transformers made of one tiny model; `tests/golden/make.py` says how."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    logits: np.ndarray
    loss: np.ndarray
    gradients: dict[str, np.ndarray]
    greedy: np.ndarray

    def write(self, folder: Path) -> None:
        """The model as transformers would have saved it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(self.tensors, folder / "model.safetensors")


@functools.lru_cache
def golden(case: str) -> Golden:
    """One tiny model's record."""
    with np.load(GOLDEN / f"{CASES[case][0]}.npz") as file:
        held = {
            part: file[f"{case}/{part}"]
            for part in (*Golden._fields, "names", "weights")
            if part != "tensors"
        }
    shapes = json.loads(str(held["names"]))
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(held["weights"], ends[:-1])
    tensors = {
        name: (part.reshape(shape) / np.float32(64)).astype(np.float32)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    gradients = dict(zip(shapes, held["gradients"], strict=True))
    config = json.loads(str(held["config"]))
    return Golden(config, tensors, held["logits"], held["loss"], gradients, held["greedy"])


def spots(gradient: np.ndarray) -> np.ndarray:
    """A gradient's norm and eight of its entries, spread over it."""
    flat = np.asarray(gradient).ravel()
    places = np.linspace(0, len(flat) - 1, 8).astype(int)
    return np.concatenate([[np.linalg.norm(flat)], flat[places]])


def logits_and_gradient(params: Any, config: Config) -> tuple[jax.Array, jax.Array, Any]:
    """The loss on `TOKENS`, their logits, and the gradient of the loss."""
    tokens = jnp.asarray(TOKENS)

    def loss(params):
        logits = forward(params, config, tokens).logits
        return -jax.nn.log_softmax(logits[:-1])[
            jnp.arange(len(TOKENS) - 1), tokens[1:]
        ].mean(), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, logits, gradient


def close(found: Any, expected: Any, tolerance: float) -> None:
    """Within the tolerance, times the largest number where that is above 1."""
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
