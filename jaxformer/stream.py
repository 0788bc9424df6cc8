"""The residual stream's two operations. All that a layer can do to a state is built from them."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def query(
    state: Float[Array, "t d"], directions: Float[Array, "d *features"]
) -> Float[Array, "t *features"]:
    """How much of each direction is in each state: Σ_d state·direction.

    >>> query(jnp.array([[3.0, 4.0]]), jnp.array([1.0, 0.5]))
    Array([5.], dtype=float32)
    """
    return jnp.einsum("td,d...->t...", state, directions)


def update(state: Float[Array, "t d"], change: Float[Array, "t d"]) -> Float[Array, "t d"]:
    """Add a change to each state; nothing on the stream is ever overwritten.

    >>> update(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, -1.0]]))
    Array([[3., 3.]], dtype=float32)
    """
    return state + change


def wide(dtype: Any) -> Any:
    """The dtype for what rounds badly when it is narrow (norms, softmax, logits): float32, or the wider one.

    >>> wide(jnp.bfloat16), wide(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)
