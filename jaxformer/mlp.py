"""MLP: neurons that each read one direction of the state and write another, position by position."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.sites import Tap
from jaxformer.spec import constant, matrix, write_gain
from jaxformer.stream import biased, product, query, recomputed, widened


class MLP(NamedTuple):
    """Neuron f reads `W_in[:, f]` and writes `W_out[f]`; with a leading `l` where layers are stacked."""

    W_in: Float[Array, "*l d f"]
    W_gate: Float[Array, "*l d f"] | None
    W_out: Float[Array, "*l f d"]
    b_in: Float[Array, "*l f"] | None
    b_gate: Float[Array, "*l f"] | None
    b_out: Float[Array, "*l d"] | None


class Activation(NamedTuple):
    """A nonlinearity, its E[φ(x)²] for x ~ N(0, 1), and the power of x that it grows with.

    The initialiser divides both out.
    """

    function: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    second_moment: float
    degree: int = 1


ACTIVATIONS = {
    "relu": Activation(jax.nn.relu, 0.5),
    "gelu": Activation(lambda x: jax.nn.gelu(x, approximate=False), 0.4252215),
    "gelu_tanh": Activation(lambda x: jax.nn.gelu(x, approximate=True), 0.4251937),
    "silu": Activation(jax.nn.silu, 0.3557762),
    "relu_squared": Activation(lambda x: jnp.square(jax.nn.relu(x)), 1.5, degree=2),
}


def mlp_spec(config: Config) -> MLP | None:
    """The Specs of all MLP layers, or None in an attention-only model.

    Without norms the stream's variance grows to about e over the depth, and neurons of degree p would
    write e^p of it there: their gain is smaller by e^((1 - p)/2), so that no stream feeds on itself.
    """
    if not config.d_mlp:
        return None
    activation = ACTIVATIONS[config.activation]
    gain = write_gain(config) / activation.second_moment**0.5
    if config.norm == "none":
        gain *= math.exp((1 - activation.degree - config.gated) / 2)
    biased = config.has_bias("mlp")
    return MLP(
        W_in=matrix(config, "l d f", reads="d"),
        W_gate=matrix(config, "l d f", reads="d") if config.gated else None,
        W_out=matrix(config, "l f d", reads="f", gain=gain),
        b_in=constant(config, "l f", 0.0) if biased else None,
        b_gate=constant(config, "l f", 0.0) if biased and config.gated else None,
        b_out=constant(config, "l d", 0.0) if biased else None,
    )


def feed_forward(
    mlp: MLP, config: Config, state: Float[Array, "t d"], tap: Tap
) -> Float[Array, "t d"]:
    """One layer's update of each state: Σ_f φ(state·read_f) · write_f.

    A gated neuron reads twice and multiplies: φ(state·gate_f) · (state·read_f).

    Source: gated: Shazeer 2020, "GLU Variants Improve Transformer", §2; relu_squared: So et al. 2021,
    "Primer", §3.
    """
    activate = ACTIVATIONS[config.activation].function
    dtype = state.dtype
    read = biased(query(state, mlp.W_in), mlp.b_in).astype(dtype)
    if mlp.W_gate is None:
        post = recomputed(activate)(widened(tap("pre", read)))
    else:
        gate = biased(query(state, mlp.W_gate), mlp.b_gate).astype(dtype)
        gated = recomputed(lambda gate, read: activate(gate) * read)
        post = gated(widened(tap("pre", gate)), widened(tap("pre_linear", read)))
    written = product("tf,fd->td", tap("post", post.astype(dtype)), mlp.W_out)
    return biased(written, mlp.b_out).astype(dtype)
