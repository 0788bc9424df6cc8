"""The architecture built from flax.nnx's own layers, as an independent implementation.

Embedding, linear layers, norms and attention are nnx's. What nnx does not have (positional encodings, another
attention scale) is written here, differently from `jaxformer`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxformer.config import Config

ACTIVATIONS = {
    "relu": nnx.relu,
    "gelu": lambda x: nnx.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nnx.gelu(x, approximate=True),
    "silu": nnx.silu,
    "relu_squared": lambda x: nnx.relu(x) ** 2,
}


class NNXBlock(nnx.Module):
    """One residual block."""

    def __init__(self, config: Config, dtype: Any, rngs: nnx.Rngs):
        biased = config.has_bias("mlp")
        self.config = config
        self.attn_norm = make_norm(config, dtype, rngs)
        self.attn = nnx.MultiHeadAttention(
            num_heads=config.n_heads,
            in_features=config.d_model,
            qkv_features=config.n_heads * config.d_head,
            out_features=config.d_model,
            num_kv_heads=config.n_kv_heads,
            # nnx has all four biases or none; those that the Config does not have stay 0.
            use_bias=config.has_bias("qkv") or config.has_bias("o"),
            attention_fn=self.attention,
            param_dtype=dtype,
            decode=False,
            keep_rngs=False,
            rngs=rngs,
        )

        def linear(reads: int, writes: int, there: int) -> nnx.Linear | None:
            options = {"use_bias": biased, "param_dtype": dtype, "rngs": rngs}
            return nnx.Linear(reads, writes, **options) if there else None

        self.mlp_norm = make_norm(config, dtype, rngs) if config.d_mlp else None
        self.W_in = linear(config.d_model, config.d_mlp, config.d_mlp)
        self.W_gate = linear(config.d_model, config.d_mlp, config.gated)
        self.W_out = linear(config.d_mlp, config.d_model, config.d_mlp)

    def attention(self, query: Array, key: Array, value: Array, **options: Any) -> Array:
        """Apply rotary positions and the Config's attention scale, then nnx's attention."""
        query, key = rotate(query, self.config), rotate(key, self.config)
        if self.config.attention_scale is not None:  # nnx divides by √d_head itself
            query = query * (self.config.attention_scale * self.config.d_head**0.5)
        # No dropout happens, but without a rate nnx calls jax.nn, whose softmax is float32 even for float64.
        options |= {"dropout_rate": 0.5, "deterministic": True}
        return nnx.dot_product_attention(query, key, value, **options)

    def __call__(self, state: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Return the updated states."""
        mask = (
            None if self.config.window is None else window_mask(state.shape[1], self.config.window)
        )
        attended = state + self.attn(self.attn_norm(state), mask=mask, is_causal=True)
        if self.W_in is None or self.W_out is None or self.mlp_norm is None:
            return attended
        read = self.mlp_norm(state if self.config.parallel else attended)
        activate = ACTIVATIONS[self.config.activation]
        hidden = self.W_in(read)
        post = activate(hidden) if self.W_gate is None else activate(self.W_gate(read)) * hidden
        return attended + self.W_out(post)


class NNXTransformer(nnx.Module):
    """The model, on a batch."""

    def __init__(self, config: Config, dtype: Any = jnp.float32):
        rngs = nnx.Rngs(0)
        self.config = config
        self.embed = nnx.Embed(config.n_vocab, config.d_model, param_dtype=dtype, rngs=rngs)
        rows = config.max_length
        self.positions = (
            nnx.Embed(rows, config.d_model, param_dtype=dtype, rngs=rngs) if rows else None
        )
        self.blocks = nnx.List([NNXBlock(config, dtype, rngs) for _ in range(config.n_layers)])
        self.final_norm = make_norm(config, dtype, rngs)
        options = {"use_bias": False, "param_dtype": dtype, "rngs": rngs}
        self.unembed = (
            None if config.tied else nnx.Linear(config.d_model, config.n_vocab, **options)
        )
        zeros = jnp.zeros(config.n_vocab, dtype) if config.unembed_bias else None
        self.unembed_bias = nnx.data(None if zeros is None else nnx.Param(zeros))

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t v"]:
        """Return the logits."""
        state = self.embed(tokens)
        if self.positions is not None:
            state = state + self.positions(jnp.arange(tokens.shape[1]))
        if self.config.position == "sinusoidal":
            state = state + sinusoids(tokens.shape[1], self.config.d_model).astype(state.dtype)
        for block in self.blocks:
            state = block(state)
        state = self.final_norm(state)
        logits = self.embed.attend(state) if self.unembed is None else self.unembed(state)
        return logits if self.unembed_bias is None else logits + self.unembed_bias[...]


def window_mask(length: int, window: int) -> Bool[Array, "1 1 t s"]:
    """Say which keys are at most window - 1 positions before each query."""
    return ~jnp.tri(length, k=-window, dtype=bool)[None, None]


def make_norm(config: Config, dtype: Any, rngs: nnx.Rngs) -> Any:
    """Return nnx's norm of the Config's kind."""
    if config.norm == "none":
        return lambda state: state
    options = {"epsilon": config.norm_epsilon, "param_dtype": dtype, "rngs": rngs}
    if config.norm == "rms":
        return nnx.RMSNorm(config.d_model, use_fast_variance=False, **options)
    return nnx.LayerNorm(
        config.d_model, use_bias=config.has_bias("norm"), use_fast_variance=False, **options
    )


def rotate(vectors: Float[Array, "b t n h"], config: Config) -> Float[Array, "b t n h"]:
    """Apply rotary positions, as a product of complex numbers."""
    half = config.rotary_width // 2
    if not half:
        return vectors
    angles = np.outer(np.arange(vectors.shape[1]), config.rotary.base ** -(np.arange(half) / half))
    phase = jnp.asarray(np.exp(1j * angles))[:, None, :]
    rotated = jax.lax.complex(vectors[..., :half], vectors[..., half : 2 * half]) * phase.astype(
        jnp.promote_types(vectors.dtype, jnp.complex64)
    )
    return jnp.concatenate([rotated.real, rotated.imag, vectors[..., 2 * half :]], axis=-1)


def sinusoids(length: int, d_model: int) -> Float[Array, "t d"]:
    """Return the sinusoidal table, computed column by column."""
    table = np.zeros((length, d_model))
    for i in range(0, d_model, 2):
        angle = np.arange(length) / 10_000 ** (i / d_model)
        table[:, i], table[:, i + 1] = np.sin(angle), np.cos(angle)
    return jnp.asarray(table)
