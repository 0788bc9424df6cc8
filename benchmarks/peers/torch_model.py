"""A plain PyTorch GPT, written as its users would write it.

It uses `nn.Linear`, `nn.LayerNorm`, one fused QKV projection, and `scaled_dot_product_attention`.
"""
# pyright: reportMissingImports=false

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn

from jaxformer.config import Config

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu_squared": lambda x: F.relu(x).square(),
}


class SelfAttention(nn.Module):
    """All heads of one layer."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.heads, self.kv_heads = config.n_heads, config.n_kv_heads or config.n_heads
        self.widths = [n * config.d_head for n in (self.heads, self.kv_heads, self.kv_heads)]
        self.qkv = nn.Linear(config.d_model, sum(self.widths), bias=config.has_bias("qkv"))
        self.out = nn.Linear(self.widths[0], config.d_model, bias=config.has_bias("o"))

    def forward(self, state: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """[b t d] -> [b t d]."""
        batch, length, _ = state.shape
        q, k, v = (
            part.view(batch, length, -1, self.config.d_head).transpose(1, 2)
            for part in self.qkv(state).split(self.widths, dim=-1)
        )
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
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
    """The MLP of one layer."""

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

    def forward(self, state: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """[b t d] -> [b t d]."""
        attended = state + self.attn(self.attn_norm(state), rotation)
        if self.mlp is None:
            return attended
        return attended + self.mlp(self.mlp_norm(state if self.parallel else attended))


class GPT(nn.Module):
    """The model, on a batch: [b t] -> [b t v]."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.n_vocab, config.d_model)
        rows = config.max_length
        self.positions = nn.Embedding(rows, config.d_model) if rows else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
        self.final_norm = make_norm(config)
        self.unembed = nn.Linear(config.d_model, config.n_vocab, bias=config.unembed_bias)
        if config.tied:
            self.unembed.weight = self.embed.weight

    def forward(self, tokens: Tensor, *, last: bool = False) -> Tensor:
        """Return the logits; with `last` only those of the last position, [b v]."""
        state, rotation = self.embed(tokens), None
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        if self.positions is not None:
            state = state + self.positions(positions)
        if self.config.position == "sinusoidal":
            state = state + sinusoids(positions, self.config.d_model).to(state.dtype)
        if self.config.rotary_width:
            rotation = angles(positions, self.config)
        for block in self.blocks:
            state = block(state, rotation)
        if last:
            state = state[:, -1]
        return self.unembed(self.final_norm(state))


def make_norm(config: Config) -> nn.Module:
    """Return PyTorch's norm of the Config's kind."""
    if config.norm == "none":
        return nn.Identity()
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_epsilon)
    return nn.LayerNorm(config.d_model, eps=config.norm_epsilon, bias=config.has_bias("norm"))


def angles(positions: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of the rotary angles, [t pairs]."""
    half = config.rotary_width // 2
    steps = torch.arange(half, device=positions.device, dtype=torch.float64) / half
    angle = positions[:, None] * config.rotary.base**-steps
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + half) of [b n t h], in float32 or wider."""
    half, dtype = cos.shape[-1], torch.promote_types(x.dtype, torch.float32)
    a, b, rest = x[..., :half].to(dtype), x[..., half : 2 * half].to(dtype), x[..., 2 * half :]
    cos, sin = cos.to(dtype), sin.to(dtype)
    rotated = [(a * cos - b * sin).to(x.dtype), (a * sin + b * cos).to(x.dtype)]
    return torch.cat([*rotated, rest], dim=-1)


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """Return the sinusoidal table, [t d]."""
    steps = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float64) / d_model
    angle = positions[:, None] * 10_000.0**-steps
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
