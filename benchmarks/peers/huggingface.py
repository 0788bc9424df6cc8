"""Hugging Face's GPT-2 in PyTorch with our weights, and its `generate`."""
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from benchmarks.device import Device
from benchmarks.peers import UnsupportedError, refuse_others
from benchmarks.peers.pytorch import place, run_forward, run_train_step, tensor, waited
from jaxformer.config import Config
from jaxformer.model.params import Params

hf: Any = transformers  # its own annotations refuse its own options

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu"}


KNOWN = frozenset({
    "n_kv_heads", "position", "n_context", "norm", "norm_epsilon", "activation", "bias", "tied",
})  # fmt: skip
"""The choices of Config that GPT-2 has at all; `check` says which values of them."""


class Logits(nn.Module):
    """The model as a function from tokens to logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """[b t] -> [b t v]."""
        return self.model(tokens, use_cache=False).logits


def forward(
    config: Config,
    params: Params,
    tokens: Any,
    device: Device,
    *,
    attention: str,
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """Logits of a batch."""
    return run_forward(
        Logits(build(config, params, device, attention)), tokens, device, compiled=compiled
    )


def train_step(
    config: Config,
    params: Params,
    windows: Any,
    device: Device,
    *,
    attention: str,
    dtype: str = "float32",
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """One AdamW step."""
    model = Logits(build(config, params, device, attention))
    return run_train_step(model, windows, device, dtype=dtype, compiled=compiled)


def decode(
    config: Config,
    params: Params,
    prompts: Any,
    device: Device,
    *,
    attention: str,
    compiled: bool = False,
) -> Callable[[int], Tensor]:
    """The tokens that `generate` adds to each prompt, greedily, with its KV cache."""
    if compiled:
        raise UnsupportedError("generate compiles nothing with its default cache")
    model = build(config, params, device, attention).eval()
    batch = tensor(prompts).long().to(place(device))
    options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(batch)}

    def call(new: int) -> Tensor:
        with torch.inference_mode():
            every = model.generate(batch, max_new_tokens=new, min_new_tokens=new, **options)
        return every[:, batch.shape[1] :]

    return waited(call, device)


def build(config: Config, params: Params, device: Device, attention: str) -> Any:
    """GPT-2 of this Config with our weights, in their dtype.

    Raises:
        UnsupportedError: anything that GPT-2 does not have.
    """
    check(config)
    shape = hf.GPT2Config(
        vocab_size=config.n_vocab, n_positions=config.n_context, n_embd=config.d_model,
        n_layer=config.n_layers, n_head=config.n_heads, n_inner=config.d_mlp,
        activation_function=ACTIVATIONS[config.activation], layer_norm_epsilon=config.norm_epsilon,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=config.tied,
        attn_implementation=attention, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = hf.GPT2LMHeadModel(shape).to(dtype=getattr(torch, str(params.W_E.dtype)))
    missing = model.load_state_dict(state_dict(config, params), strict=False).missing_keys
    if absent := [name for name in missing if not (config.tied and name == "lm_head.weight")]:
        raise UnsupportedError(f"this transformers has another GPT-2: no weights for {absent[0]}")
    return model.to(device=place(device))


def check(config: Config) -> None:
    """Refuse what GPT-2 does not have."""
    needed = {
        'position="learned"': config.position == "learned",
        'norm="layer"': config.norm == "layer",
        'bias="all"': config.bias == "all",
        f"activation of {', '.join(ACTIVATIONS)}": config.activation in ACTIVATIONS,
        "n_kv_heads=None": config.n_kv_heads in (None, config.n_heads),
        "n_heads·d_head = d_model": config.n_heads * config.d_head == config.d_model,
        "d_mlp above 0": config.d_mlp > 0,
    }
    if lacking := [name for name, there in needed.items() if not there]:
        raise UnsupportedError(f"GPT-2 needs {lacking[0]}")
    refuse_others(config, "GPT-2", KNOWN)


def state_dict(config: Config, params: Params) -> dict[str, Tensor]:
    """Our weights under GPT-2's names; its matrices are [in out], Q, K and V side by side."""
    blocks, d = params.blocks, config.d_model
    attn, mlp, norms = blocks.attn, blocks.mlp, (blocks.attn_norm, blocks.mlp_norm)
    found: dict[str, Any] = {"wte.weight": params.W_E, "wpe.weight": params.W_pos}
    found |= {f"ln_f.{part}": a for part, a in _parts(params.final_norm)}
    for layer in range(config.n_layers):
        own = f"h.{layer}."
        for name, norm in zip(("ln_1", "ln_2"), norms, strict=True):
            found |= {f"{own}{name}.{part}": a[layer] for part, a in _parts(norm)}
        qkv = [np.asarray(a[layer]).reshape(d, d) for a in (attn.W_Q, attn.W_K, attn.W_V)]
        biases = [np.ravel(a[layer]) for a in (attn.b_Q, attn.b_K, attn.b_V) if a is not None]
        found[own + "attn.c_attn.weight"] = np.concatenate(qkv, axis=1)
        found[own + "attn.c_attn.bias"] = np.concatenate(biases)
        found[own + "attn.c_proj.weight"] = np.asarray(attn.W_O[layer]).reshape(d, d)
        found[own + "attn.c_proj.bias"] = None if attn.b_O is None else attn.b_O[layer]
        for name, part in (("c_fc", "in"), ("c_proj", "out")):
            found[own + f"mlp.{name}.weight"] = getattr(mlp, f"W_{part}")[layer]
            found[own + f"mlp.{name}.bias"] = getattr(mlp, f"b_{part}")[layer]
    weights = {
        f"transformer.{name}": tensor(value) for name, value in found.items() if value is not None
    }
    if params.W_U is not None:
        weights["lm_head.weight"] = tensor(params.W_U.T)
    return weights


def _parts(norm: Any) -> list[tuple[str, Any]]:
    return [("weight", norm.w), ("bias", norm.b)]
