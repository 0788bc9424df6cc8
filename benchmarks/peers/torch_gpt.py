"""A plain PyTorch GPT with our weights, as its users would write it.

`nn.Linear`, `nn.LayerNorm`, one fused QKV projection, and `scaled_dot_product_attention`.
"""
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name
from torch import Tensor, nn

from benchmarks.device import Device
from benchmarks.peers import UnsupportedError, refuse_others
from benchmarks.peers.pytorch import place, run_forward, run_train_step, tensor, waited
from jaxformer.config import Config
from jaxformer.model.params import Params

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu_squared": lambda x: F.relu(x).square(),
}


KNOWN = frozenset({
    "n_kv_heads", "position", "n_context", "rotary_base", "rotary_fraction", "norm", "norm_epsilon",
    "activation", "gated", "bias", "parallel", "tied", "unembed_bias", "window", "attention_scale",
})  # fmt: skip
"""The choices of Config that this model has."""


class SelfAttention(nn.Module):
    """All heads of one layer."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.heads, self.kv_heads = config.n_heads, config.n_kv_heads or config.n_heads
        self.widths = [n * config.d_head for n in (self.heads, self.kv_heads, self.kv_heads)]
        self.qkv = nn.Linear(config.d_model, sum(self.widths), bias=config.has_bias("qkv"))
        self.out = nn.Linear(self.widths[0], config.d_model, bias=config.has_bias("o"))

    def forward(self, state: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """[b t d] -> [b t d]."""
        batch, length, _ = state.shape
        q, k, v = (
            part.view(batch, length, -1, self.config.d_head).transpose(1, 2)
            for part in self.qkv(state).split(self.widths, dim=-1)
        )
        if turn is not None:
            q, k = rotary(q, *turn), rotary(k, *turn)
        mask = None
        if self.config.window is not None:
            ones = torch.ones(length, length, dtype=torch.bool, device=state.device)
            mask = ones.tril().triu(1 - self.config.window)
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.config.score_scale,
            enable_gqa=self.heads != self.kv_heads,
        )  # fmt: skip
        return self.out(z.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """The neurons of one layer."""

    def __init__(self, config: Config):
        super().__init__()
        biased = config.has_bias("mlp")
        self.activate = ACTIVATIONS[config.activation]
        self.read = nn.Linear(config.d_model, config.d_mlp, bias=biased)
        self.gate = nn.Linear(config.d_model, config.d_mlp, bias=biased) if config.gated else None
        self.write = nn.Linear(config.d_mlp, config.d_model, bias=biased)

    def forward(self, state: Tensor) -> Tensor:
        """[b t d] -> [b t d]."""
        read = self.read(state)
        if self.gate is None:
            return self.write(self.activate(read))
        return self.write(self.activate(self.gate(state)) * read)


class Block(nn.Module):
    """One residual block."""

    def __init__(self, config: Config):
        super().__init__()
        self.parallel = config.parallel
        self.attn_norm, self.attn = make_norm(config), SelfAttention(config)
        self.mlp_norm = make_norm(config) if config.d_mlp else nn.Identity()
        self.mlp = FeedForward(config) if config.d_mlp else None

    def forward(self, state: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """[b t d] -> [b t d]."""
        attended = state + self.attn(self.attn_norm(state), turn)
        if self.mlp is None:
            return attended
        return attended + self.mlp(self.mlp_norm(state if self.parallel else attended))


class GPT(nn.Module):
    """The whole model, on a batch: [b t] -> [b t v]."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.n_vocab, config.d_model)
        rows = config.n_context
        self.positions = nn.Embedding(rows, config.d_model) if rows else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
        self.final_norm = make_norm(config)
        self.unembed = nn.Linear(config.d_model, config.n_vocab, bias=config.unembed_bias)
        if config.tied:
            self.unembed.weight = self.embed.weight

    def forward(self, tokens: Tensor, *, last: bool = False) -> Tensor:
        """Logits; of the last position alone if asked: [b v]."""
        state, turn = self.embed(tokens), None
        places = torch.arange(tokens.shape[1], device=tokens.device)
        if self.positions is not None:
            state = state + self.positions(places)
        if self.config.position == "sinusoidal":
            state = state + sinusoids(places, self.config.d_model).to(state.dtype)
        if self.config.rotary_width:
            turn = angles(places, self.config)
        for block in self.blocks:
            state = block(state, turn)
        if last:
            state = state[:, -1]
        return self.unembed(self.final_norm(state))


def make_norm(config: Config) -> nn.Module:
    """PyTorch's norm of the Config's kind."""
    if config.norm == "none":
        return nn.Identity()
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_epsilon)
    return nn.LayerNorm(config.d_model, eps=config.norm_epsilon, bias=config.has_bias("norm"))


def angles(places: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary turns, [t pairs]."""
    half = config.rotary_width // 2
    steps = torch.arange(half, device=places.device, dtype=torch.float64) / half
    turned = places[:, None] * config.rotary_base**-steps
    return turned.cos(), turned.sin()


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + half) of [b n t h], in float32 or wider."""
    half, wide = cos.shape[-1], torch.promote_types(x.dtype, torch.float32)
    a, b, rest = x[..., :half].to(wide), x[..., half : 2 * half].to(wide), x[..., 2 * half :]
    cos, sin = cos.to(wide), sin.to(wide)
    turned = [(a * cos - b * sin).to(x.dtype), (a * sin + b * cos).to(x.dtype)]
    return torch.cat([*turned, rest], dim=-1)


def sinusoids(places: Tensor, d_model: int) -> Tensor:
    """The sinusoidal table, [t d]."""
    steps = torch.arange(0, d_model, 2, device=places.device, dtype=torch.float64) / d_model
    turned = places[:, None] * 10_000.0**-steps
    return torch.stack([turned.sin(), turned.cos()], dim=-1).flatten(1)


def forward(
    config: Config, params: Params, tokens: Any, device: Device, *, compiled: bool = False
) -> Callable[[], Tensor]:
    """Logits of a batch."""
    return run_forward(build(config, params, device), tokens, device, compiled=compiled)


def train_step(
    config: Config,
    params: Params,
    windows: Any,
    device: Device,
    *,
    dtype: str = "float32",
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """One AdamW step."""
    model = build(config, params, device)
    return run_train_step(model, windows, device, dtype=dtype, compiled=compiled)


def decode(
    config: Config, params: Params, prompts: Any, device: Device, *, compiled: bool = False
) -> Callable[[int], Tensor]:
    """The likeliest tokens, as nanoGPT generates: no cache, the whole text is read anew for each of them."""
    if compiled:
        raise UnsupportedError(
            "without a cache the text grows at every step, and each length would be compiled anew"
        )
    model = build(config, params, device).eval()
    batch = tensor(prompts).long().to(place(device))

    def call(new: int) -> Tensor:
        text = batch
        with torch.inference_mode():
            for _ in range(new):
                # The position table holds no more.
                seen = text[:, -config.n_context :] if config.n_context else text
                token = model(seen, last=True).argmax(dim=-1, keepdim=True)
                text = torch.cat([text, token], dim=1)
        return text[:, batch.shape[1] :]

    return waited(call, device)


def build(config: Config, params: Params, device: Device) -> GPT:
    """The PyTorch model with our weights in it, in their dtype.

    Raises:
        UnsupportedError: a choice that it does not have.
    """
    refuse_others(config, "this GPT", KNOWN)
    model = GPT(config).to(dtype=getattr(torch, str(params.W_E.dtype)))
    model.load_state_dict(state_dict(config, params))
    return model.to(device=place(device))


def state_dict(config: Config, params: Params) -> dict[str, Tensor]:
    """Our weights under this model's names; a Linear's weight is [out in]."""
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
    """[*reads, *writes] as [writes, reads], both flat."""
    weight = np.asarray(weight)
    fan_in = int(np.prod(weight.shape[:reads]))
    return weight.reshape(fan_in, -1).T


def _norm(name: str, norm: Any, layer: int | None = None) -> dict[str, Any]:
    if norm is None:
        return {}
    w, b = (None if a is None else a if layer is None else a[layer] for a in norm)
    return {f"{name}.weight": w, f"{name}.bias": b}
