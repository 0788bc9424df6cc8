"""The peers torch and torch-compile: the model of `torch_model`, run with our weights."""
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.device import Device
from benchmarks.peers import UnsupportedError, refuse_others
from benchmarks.peers.pytorch import place, run_forward, run_train_step, tensor, waited
from benchmarks.peers.torch_model import GPT
from jaxformer.config import Config
from jaxformer.model.params import Params

KNOWN = frozenset({
    "n_kv_heads", "position", "n_context", "rotary.base", "rotary.fraction", "norm", "norm_epsilon",
    "activation", "gated", "bias", "parallel", "tied", "unembed_bias", "window", "attention_scale",
})  # fmt: skip
"""The fields of Config that this model supports."""


def forward(
    params: Params, config: Config, tokens: Any, device: Device, *, compiled: bool = False
) -> Callable[[], Tensor]:
    """Return a call that computes the logits of a batch."""
    return run_forward(build(params, config, device), tokens, device, compiled=compiled)


def train_step(
    params: Params,
    config: Config,
    windows: Any,
    device: Device,
    *,
    dtype: str = "float32",
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """Return a call that makes one AdamW step and returns its loss."""
    model = build(params, config, device)
    return run_train_step(model, windows, device, dtype=dtype, compiled=compiled)


def decode(
    params: Params, config: Config, prompts: Any, device: Device, *, compiled: bool = False
) -> Callable[[int], Tensor]:
    """Return a call that generates greedily as nanoGPT does: without a cache, each token reads the text again."""
    if compiled:
        raise UnsupportedError(
            "without a cache, the text grows at every step, and each length would recompile"
        )
    model = build(params, config, device).eval()
    batch = tensor(prompts).long().to(place(device))

    def call(new: int) -> Tensor:
        text = batch
        with torch.inference_mode():
            for _ in range(new):
                # The position table has this many rows.
                seen = text[:, -config.max_length :] if config.max_length else text
                token = model(seen, last=True).argmax(dim=-1, keepdim=True)
                text = torch.cat([text, token], dim=1)
        return text[:, batch.shape[1] :]

    return waited(call, device)


def build(params: Params, config: Config, device: Device) -> GPT:
    """Return the PyTorch model with our weights, in their dtype.

    Raises:
        UnsupportedError: a choice of the Config that the model does not have.
    """
    refuse_others(config, "this GPT", KNOWN)
    model = GPT(config).to(dtype=getattr(torch, str(params.W_E.dtype)))
    model.load_state_dict(state_dict(params, config))
    return model.to(device=place(device))


def state_dict(params: Params, config: Config) -> dict[str, Tensor]:
    """Return our weights under this model's names; the weight of a Linear is [out in]."""
    attn, mlp = params.blocks.attn, params.blocks.mlp
    found: dict[str, Any] = {"embed.weight": params.W_E, "positions.weight": params.W_pos}
    found["unembed.weight"] = params.W_E if params.W_U is None else params.W_U.T
    found["unembed.bias"] = params.b_U
    found |= _norm("final_norm", params.final_norm)
    for layer in range(config.n_layers):
        own = f"blocks.{layer}."
        heads = [_matrix(w[layer], 1) for w in (attn.W_Q, attn.W_K, attn.W_V)]
        found[own + "attn.qkv.weight"] = np.concatenate(heads).reshape(-1, config.d_model)
        if attn.b_Q is not None:
            biases = [np.ravel(b[layer]) for b in (attn.b_Q, attn.b_K, attn.b_V) if b is not None]
            found[own + "attn.qkv.bias"] = np.concatenate(biases)
        found[own + "attn.out.weight"] = _matrix(attn.W_O[layer], 2)
        found[own + "attn.out.bias"] = _at(attn.b_O, layer)
        found |= _norm(own + "attn_norm", params.blocks.attn_norm, layer)
        found |= _norm(own + "mlp_norm", params.blocks.mlp_norm, layer)
        for name, part in (("read", "in"), ("gate", "gate"), ("write", "out")):
            weight = _at(getattr(mlp, f"W_{part}", None), layer)
            found[f"{own}mlp.{name}.weight"] = None if weight is None else _matrix(weight, 1)
            found[f"{own}mlp.{name}.bias"] = _at(getattr(mlp, f"b_{part}", None), layer)
    return {name: tensor(value) for name, value in found.items() if value is not None}


def _at(array: Any, layer: int) -> Any:
    return None if array is None else array[layer]


def _matrix(weight: Any, reads: int) -> Any:
    """Reshape [*reads, *writes] to the matrix [writes, reads]."""
    weight = np.asarray(weight)
    fan_in = int(np.prod(weight.shape[:reads]))
    return weight.reshape(fan_in, -1).T


def _norm(name: str, norm: Any, layer: int | None = None) -> dict[str, Any]:
    if norm is None:
        return {}
    w, b = (None if a is None else a if layer is None else a[layer] for a in norm)
    return {f"{name}.weight": w, f"{name}.bias": b}
