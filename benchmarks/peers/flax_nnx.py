"""The same architecture from flax.nnx's own layers, as an independent second opinion.

Embedding, linear layers, norms and attention are nnx's; what nnx lacks (positions, another attention
scale) is written here in another way than in `jaxformer`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from benchmarks.device import Device
from benchmarks.peers import ADAMW, UnsupportedError, refuse_others
from jaxformer.config import Config
from jaxformer.model import attention, mlp, norm, transformer
from jaxformer.model.params import Params

ACTIVATIONS = {
    "relu": nnx.relu,
    "gelu": lambda x: nnx.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nnx.gelu(x, approximate=True),
    "silu": nnx.silu,
    "relu_squared": lambda x: nnx.relu(x) ** 2,
}


KNOWN = frozenset({
    "n_kv_heads", "position", "n_context", "rotary_base", "rotary_fraction", "norm", "norm_epsilon",
    "activation", "gated", "bias", "parallel", "tied", "unembed_bias", "window", "attention_scale",
})  # fmt: skip
"""The choices of Config that this model has."""


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
            # All four or none: those that are not ours are 0.
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
        """Nnx's attention behind rotary positions and our scale."""
        query, key = turn(query, self.config), turn(key, self.config)
        if self.config.attention_scale is not None:  # nnx divides by √d_head by itself
            query = query * (self.config.attention_scale * self.config.d_head**0.5)
        options |= {
            "dropout_rate": 0.5,
            "deterministic": True,
        }  # no dropout, but nnx's own arithmetic:
        # without the rate it hands over to jax.nn, whose softmax is float32 even for float64
        return nnx.dot_product_attention(query, key, value, **options)

    def __call__(self, state: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The updated states."""
        mask = None if self.config.window is None else within(state.shape[1], self.config.window)
        attended = state + self.attn(self.attn_norm(state), mask=mask, is_causal=True)
        if self.W_in is None or self.W_out is None or self.mlp_norm is None:
            return attended
        read = self.mlp_norm(state if self.config.parallel else attended)
        activate = ACTIVATIONS[self.config.activation]
        hidden = self.W_in(read)
        post = activate(hidden) if self.W_gate is None else activate(self.W_gate(read)) * hidden
        return attended + self.W_out(post)


class NNXTransformer(nnx.Module):
    """The whole model, on a batch."""

    def __init__(self, config: Config, dtype: Any = jnp.float32):
        rngs = nnx.Rngs(0)
        self.config = config
        self.embed = nnx.Embed(config.n_vocab, config.d_model, param_dtype=dtype, rngs=rngs)
        rows = config.n_context
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
        """Logits."""
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


def within(length: int, window: int) -> Bool[Array, "1 1 t s"]:
    """Which key is at most window - 1 positions back."""
    return ~jnp.tri(length, k=-window, dtype=bool)[None, None]


def make_norm(config: Config, dtype: Any, rngs: nnx.Rngs) -> Any:
    """Nnx's norm of the Config's kind."""
    if config.norm == "none":
        return lambda state: state
    options = {"epsilon": config.norm_epsilon, "param_dtype": dtype, "rngs": rngs}
    if config.norm == "rms":
        return nnx.RMSNorm(config.d_model, use_fast_variance=False, **options)
    return nnx.LayerNorm(
        config.d_model, use_bias=config.has_bias("norm"), use_fast_variance=False, **options
    )


def turn(vectors: Float[Array, "b t n h"], config: Config) -> Float[Array, "b t n h"]:
    """Rotary positions as a product of complex numbers."""
    half = config.rotary_width // 2
    if not half:
        return vectors
    angles = np.outer(np.arange(vectors.shape[1]), config.rotary_base ** -(np.arange(half) / half))
    phase = jnp.asarray(np.exp(1j * angles))[:, None, :]
    turned = jax.lax.complex(vectors[..., :half], vectors[..., half : 2 * half]) * phase.astype(
        jnp.promote_types(vectors.dtype, jnp.complex64)
    )
    return jnp.concatenate([turned.real, turned.imag, vectors[..., 2 * half :]], axis=-1)


def sinusoids(length: int, d_model: int) -> Float[Array, "t d"]:
    """The sinusoidal table, column by column."""
    table = np.zeros((length, d_model))
    for i in range(0, d_model, 2):
        angle = np.arange(length) / 10_000 ** (i / d_model)
        table[:, i], table[:, i + 1] = np.sin(angle), np.cos(angle)
    return jnp.asarray(table)


def build(config: Config, params: Params) -> NNXTransformer:
    """An nnx model with our weights in it.

    Raises:
        UnsupportedError: a choice that it does not have.
    """
    refuse_others(config, "flax-nnx", KNOWN)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: NNXTransformer(config, params.W_E.dtype)))
    model = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))

    def put(variables: Any, array: Array) -> None:
        layered = isinstance(variables, list)
        for variable, value in (
            zip(variables, array, strict=True) if layered else [(variables, array)]
        ):
            variable.set_value(value)

    jax.tree.map(put, places(model, config), params, is_leaf=_is_place)
    return model


def forward(config: Config, params: Params, tokens: Any, device: Device) -> Callable[[], Array]:
    """Logits of a batch."""
    del device  # JAX's default device
    model = nnx.jit(lambda model, tokens: model(tokens))
    return partial(model, build(config, params), jnp.asarray(tokens))


def train_step(
    config: Config, params: Params, windows: Any, device: Device, *, dtype: str = "float32"
) -> Callable[[], Array]:
    """One AdamW step on the same batch at every call; its loss.

    Raises:
        UnsupportedError: a narrower dtype, which this model has for parameters and products alike.
    """
    del device
    if dtype != "float32":
        raise UnsupportedError("trains in float32 only")
    model = build(config, params)
    adamw = optax.adamw(**ADAMW)
    optimizer = nnx.Optimizer(model, adamw, wrt=nnx.Param)
    losses = optax.softmax_cross_entropy_with_integer_labels

    @nnx.jit
    def step(model: NNXTransformer, optimizer: Any, windows: Array) -> Array:
        def loss(model: NNXTransformer) -> Array:
            logits = model(windows[:, :-1]).astype(jnp.float32)
            return losses(logits, windows[:, 1:]).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    return partial(step, model, optimizer, jnp.asarray(windows))


def read(model: NNXTransformer, config: Config) -> Params:
    """The model's weights, or a gradient that stands in their places, as our Params."""

    def stack(variables: Any) -> Array:
        if isinstance(variables, list):
            return jnp.stack([variable.get_value() for variable in variables])
        return variables.get_value()

    return jax.tree.map(stack, places(model, config), is_leaf=_is_place)


def places(model: NNXTransformer, config: Config) -> Any:
    """Params with an nnx variable in the place of each array; per layer, a list of them."""
    blocks: Any = list(model.blocks)
    attns = [block.attn for block in blocks]
    qkv, of_sum = config.has_bias("qkv"), config.has_bias("o")
    return make(transformer.Params)(
        W_E=model.embed.embedding,
        W_pos=model.positions.embedding if model.positions else None,
        blocks=make(transformer.Block)(
            attn_norm=_norm_places(config, [block.attn_norm for block in blocks]),
            attn=make(attention.Attention)(
                *([getattr(attn, part).kernel for attn in attns] for part in PROJECTIONS),
                *(
                    [getattr(attn, part).bias for attn in attns] if qkv else None
                    for part in PROJECTIONS[:3]
                ),
                b_O=[attn.out.bias for attn in attns] if of_sum else None,
            ),
            mlp_norm=_norm_places(config, [block.mlp_norm for block in blocks])
            if config.d_mlp
            else None,
            mlp=_mlp_places(config, blocks),
        ),
        final_norm=_norm_places(config, model.final_norm),
        W_U=model.unembed.kernel if model.unembed else None,
        b_U=model.unembed_bias,
    )


PROJECTIONS = ("query", "key", "value", "out")


def _norm_places(config: Config, norms: Any) -> Any:
    if config.norm == "none":
        return None
    biased = config.has_bias("norm") and config.norm == "layer"
    if not isinstance(norms, list):
        return make(norm.Norm)(norms.scale, norms.bias if biased else None)
    bias: Any = [norm.bias for norm in norms] if biased else None
    return make(norm.Norm)([norm.scale for norm in norms], bias)


def _mlp_places(config: Config, blocks: list[Any]) -> Any:
    if not config.d_mlp:
        return None

    def column(layer: str, part: str, there: bool = True) -> Any:
        return [getattr(getattr(block, layer), part) for block in blocks] if there else None

    biased = config.has_bias("mlp")
    return make(mlp.MLP)(
        W_in=column("W_in", "kernel"),
        W_gate=column("W_gate", "kernel", config.gated),
        W_out=column("W_out", "kernel"),
        b_in=column("W_in", "bias", biased),
        b_gate=column("W_gate", "bias", biased and config.gated),
        b_out=column("W_out", "bias", biased),
    )


def make(kind: type) -> Any:
    """The constructor of one of our tuples, for leaves that are not arrays."""
    return kind


def _is_place(node: Any) -> bool:
    return isinstance(node, (list, nnx.Variable))
