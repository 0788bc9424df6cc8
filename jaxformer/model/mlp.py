"""MLP: neurons that each read one direction of the state and write another, position by position."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.model.params import MLP
from jaxformer.model.stream import biased, product, query, recomputed, widened
from jaxformer.model.tap import Tap


def feed_forward(
    mlp: MLP, config: Config, state: Float[Array, "t d"], tap: Tap
) -> Float[Array, "t d"]:
    """One layer's update of each state: Σ_f φ(state·read_f) · write_f.

    A gated neuron reads twice and multiplies: φ(state·gate_f) · (state·read_f).

    Source: gated: Shazeer 2020, "GLU Variants Improve Transformer", §2; relu_squared: So et al. 2021,
    "Primer", §3.
    """
    activate = ACTIVATIONS[config.activation]
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


ACTIVATIONS: dict[str, Callable[[Float[Array, "..."]], Float[Array, "..."]]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
}
