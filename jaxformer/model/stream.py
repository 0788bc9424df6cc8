"""The residual stream's two operations, query and update, and the arithmetic that the layers share."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Values = Float[Array, "..."]


def query(
    state: Float[Array, "t d"], directions: Float[Array, "d *features"]
) -> Float[Array, "t *features"]:
    """Return how much of each direction is in each state: Σ_d state·direction, in float32 or wider.

    >>> query(jnp.array([[3.0, 4.0]]), jnp.array([1.0, 0.5]))
    Array([5.], dtype=float32)
    """
    return einsum_f32("td,d...->t...", state, directions)


def update(state: Float[Array, "t d"], change: Float[Array, "t d"]) -> Float[Array, "t d"]:
    """Add a change to each state. A layer never overwrites what is on the stream.

    >>> update(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, -1.0]]))
    Array([[3., 3.]], dtype=float32)
    """
    return state + change


def linear(state: Float[Array, "t d"], directions: Values, bias: Values | None) -> Values:
    """Query the state, add the bias if there is one, and round to the state's dtype."""
    return add_bias(query(state, directions), bias).astype(state.dtype)


def add_bias(values: Values, bias: Values | None) -> Values:
    """Add the bias, if the model has one."""
    return values if bias is None else values + bias.astype(values.dtype)


def soft_cap(values: Values, cap: float | None) -> Values:
    """Map each value x to cap·tanh(x/cap), which stays within ±cap; None: no cap.

    Source: Gemma Team 2024, "Gemma 2", §2.

    >>> soft_cap(jnp.array([0.0, 1e9]), 30.0)
    Array([ 0., 30.], dtype=float32)
    """
    return values if cap is None else cap * jnp.tanh(values / cap)


def take_positions(state: Float[Array, "t d"], positions: Int[Array, " r"]) -> Float[Array, "r d"]:
    """Take the states at some positions; a position outside gives NaN, where indexing would clamp it."""
    return state.at[positions].get(mode="fill", fill_value=jnp.nan)


def accumulation_dtype(dtype: Any) -> Any:
    """Return the dtype for sums, norms, softmax and logits: float32, or the given dtype if it is wider."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def upcast(values: Values) -> Values:
    """Convert to float32 or wider, for a nonlinearity or a norm."""
    return values.astype(accumulation_dtype(values.dtype))


def einsum_f32(formula: str, left: Values, right: Values) -> Values:
    """Return the einsum of two arrays of one dtype, summed and returned in float32 or wider.

    The caller rounds once, after bias and nonlinearity. That is as exact as narrow inputs allow.
    """
    if left.dtype == jnp.bfloat16:
        return _einsum_bf16(formula, left, right)
    return jnp.einsum(formula, left, right, preferred_element_type=accumulation_dtype(left.dtype))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _einsum_bf16(formula: str, left: Array, right: Array) -> Array:
    return jnp.einsum(formula, left, right, preferred_element_type=jnp.float32)


@_einsum_bf16.defjvp
def _(formula: str, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> Any:
    """Round derivatives to bfloat16, so that the backward pass multiplies narrow arrays: JAX's rule would be slow."""
    (left, right), (d_left, d_right) = primals, tangents
    tangent = jnp.einsum(formula, d_left, right) + jnp.einsum(formula, left, d_right)
    return _einsum_bf16(formula, left, right), tangent.astype(jnp.float32)
