"""The peer flax-nnx: the model of `flax_model`, run with our weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from benchmarks.device import Device
from benchmarks.peers import ADAMW, UnsupportedError, refuse_others
from benchmarks.peers.flax_model import NNXTransformer
from jaxformer.config import Config
from jaxformer.model import attention, mlp, norm, transformer
from jaxformer.model.params import Params

KNOWN = frozenset({
    "n_kv_heads", "position", "n_context", "rotary.base", "rotary.fraction", "norm", "norm_epsilon",
    "activation", "gated", "bias", "parallel", "tied", "unembed_bias", "window", "attention_scale",
})  # fmt: skip
"""The fields of Config that this model supports."""


def build(params: Params, config: Config) -> NNXTransformer:
    """Return an nnx model with our weights.

    Raises:
        UnsupportedError: a choice of the Config that the model does not have.
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

    jax.tree.map(put, variables_of(model, config), params, is_leaf=_is_variable)
    return model


def forward(params: Params, config: Config, tokens: Any, device: Device) -> Callable[[], Array]:
    """Return a call that computes the logits of a batch."""
    del device  # the caller makes it JAX's default device
    model = nnx.jit(lambda model, tokens: model(tokens))
    return partial(model, build(params, config), jnp.asarray(tokens))


def train_step(
    params: Params, config: Config, windows: Any, device: Device, *, dtype: str = "float32"
) -> Callable[[], Array]:
    """Return a call that makes one AdamW step, always on the same batch, and returns its loss.

    Raises:
        UnsupportedError: a narrower dtype; this model would use it for the parameters too.
    """
    del device
    if dtype != "float32":
        raise UnsupportedError("trains in float32 only")
    model = build(params, config)
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
    """Return the model's weights, or a gradient in their place, as Params."""

    def stack(variables: Any) -> Array:
        if isinstance(variables, list):
            return jnp.stack([variable.get_value() for variable in variables])
        return variables.get_value()

    return jax.tree.map(stack, variables_of(model, config), is_leaf=_is_variable)


def variables_of(model: NNXTransformer, config: Config) -> Any:
    """Return Params that hold nnx variables instead of arrays; instead of a stacked array, a list of layers."""
    blocks: Any = list(model.blocks)
    attns = [block.attn for block in blocks]
    qkv, o_bias = config.has_bias("qkv"), config.has_bias("o")
    return make(transformer.Params)(
        W_E=model.embed.embedding,
        W_pos=model.positions.embedding if model.positions else None,
        blocks=make(transformer.Block)(
            attn_norm=_norm_variables(config, [block.attn_norm for block in blocks]),
            attn=make(attention.Attention)(
                *([getattr(attn, part).kernel for attn in attns] for part in PROJECTIONS),
                *(
                    [getattr(attn, part).bias for attn in attns] if qkv else None
                    for part in PROJECTIONS[:3]
                ),
                b_O=[attn.out.bias for attn in attns] if o_bias else None,
            ),
            mlp_norm=_norm_variables(config, [block.mlp_norm for block in blocks])
            if config.d_mlp
            else None,
            mlp=_mlp_variables(config, blocks),
        ),
        final_norm=_norm_variables(config, model.final_norm),
        W_U=model.unembed.kernel if model.unembed else None,
        b_U=model.unembed_bias,
    )


PROJECTIONS = ("query", "key", "value", "out")


def _norm_variables(config: Config, norms: Any) -> Any:
    if config.norm == "none":
        return None
    biased = config.has_bias("norm") and config.norm == "layer"
    if not isinstance(norms, list):
        return make(norm.Norm)(norms.scale, norms.bias if biased else None)
    bias: Any = [norm.bias for norm in norms] if biased else None
    return make(norm.Norm)([norm.scale for norm in norms], bias)


def _mlp_variables(config: Config, blocks: list[Any]) -> Any:
    if not config.d_mlp:
        return None

    def column(layer: str, part: str, exists: bool = True) -> Any:
        return [getattr(getattr(block, layer), part) for block in blocks] if exists else None

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
    """Return the constructor of a parameter tuple, untyped, because these leaves are not arrays."""
    return kind


def _is_variable(node: Any) -> bool:
    return isinstance(node, (list, nnx.Variable))
