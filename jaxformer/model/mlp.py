"""MLP: neurons that each read one direction of the state and write another, position by position."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.model.cpu import recomputed
from jaxformer.model.params import MLP
from jaxformer.model.stream import Values, add_bias, einsum_f32, linear, upcast
from jaxformer.model.tap import Tap


def feed_forward(
    mlp: MLP, config: Config, state: Float[Array, "t d"], *, tap: Tap = Tap()
) -> Float[Array, "t d"]:
    """Return the update that one MLP layer writes to the residual stream: Σ_f φ(state·in_f) · out_f.

    A gated neuron queries the state twice and multiplies: φ(state·gate_f) · (state·in_f).

    Source: gated: Shazeer 2020, "GLU Variants Improve Transformer", §2; relu_squared: So et al. 2021, "Primer", §3.

    >>> config = Config(n_layers=1, d_model=2, n_heads=1, d_head=2, d_mlp=1, n_vocab=5)
    >>> mlp = MLP(jnp.array([[1.0], [0.0]]), None, jnp.array([[0.0, 10.0]]), None, None, None)
    >>> feed_forward(mlp, config, jnp.array([[3.0, 4.0], [-3.0, 4.0]]))
    Array([[ 0., 30.],
           [ 0.,  0.]], dtype=float32)
    """
    activate = ACTIVATIONS[config.activation]
    read = linear(state, mlp.W_in, mlp.b_in)
    if mlp.W_gate is None:
        post = recomputed(activate)(upcast(tap("pre", read)))
    else:
        gate = tap("pre", linear(state, mlp.W_gate, mlp.b_gate))
        gated = recomputed(lambda gate, read: activate(gate) * read)
        post = gated(upcast(gate), upcast(tap("pre_linear", read)))
    post = tap("post", post.astype(state.dtype))
    return add_bias(einsum_f32("tf,fd->td", post, mlp.W_out), mlp.b_out).astype(state.dtype)


ACTIVATIONS: dict[str, Callable[[Values], Values]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
}
"""The nonlinearity φ by its name in Config."""
