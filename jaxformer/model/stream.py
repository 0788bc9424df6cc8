"""The residual stream's two operations. All that a layer can do to a state is built from them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def query(
    state: Float[Array, "t d"], directions: Float[Array, "d *features"]
) -> Float[Array, "t *features"]:
    """How much of each direction is in each state: Σ_d state·direction, in float32 or wider.

    >>> query(jnp.array([[3.0, 4.0]]), jnp.array([1.0, 0.5]))
    Array([5.], dtype=float32)
    """
    return product("td,d...->t...", state, directions)


def update(state: Float[Array, "t d"], change: Float[Array, "t d"]) -> Float[Array, "t d"]:
    """Add a change to each state; nothing on the stream is ever overwritten.

    >>> update(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, -1.0]]))
    Array([[3., 3.]], dtype=float32)
    """
    return state + change


def pick(state: Float[Array, "t d"], places: Int[Array, " r"]) -> Float[Array, "r d"]:
    """The states at some places; NaN at one that is not there, where indexing would take the nearest.

    >>> pick(jnp.array([[3.0], [4.0]]), jnp.array([-1, 2])).ravel()
    Array([ 4., nan], dtype=float32)
    """
    return state.at[places].get(mode="fill", fill_value=jnp.nan)


def wide(dtype: Any) -> Any:
    """The dtype for what rounds badly when it is narrow (norms, softmax, logits): float32, or the wider one.

    >>> wide(jnp.bfloat16), wide(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def product(
    formula: str, left: Float[Array, "..."], right: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The einsum of two arrays of one dtype, summed and returned in float32 or wider.

    Rounding once, after bias and nonlinearity, is as exact as narrow inputs allow, and on CPU it is
    also faster than rounding every product.

    >>> product("td,d->t", jnp.ones((1, 2), jnp.bfloat16), jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    if left.dtype == jnp.bfloat16:
        return _wide_product(formula, left, right)
    return jnp.einsum(formula, left, right, preferred_element_type=wide(left.dtype))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _wide_product(formula: str, left: Array, right: Array) -> Array:
    return jnp.einsum(formula, left, right, preferred_element_type=wide(left.dtype))


@_wide_product.defjvp
def _(formula: str, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> Any:
    """Its own rule: derivatives are rounded to bfloat16, and their products stay narrow.

    JAX's rule would run the backward pass's products in float32: half the rounding error, at a fraction
    of the speed. float16 keeps JAX's rule, for in its range small derivatives would vanish.
    """
    (left, right), (d_left, d_right) = primals, tangents
    tangent = jnp.einsum(formula, d_left, right) + jnp.einsum(formula, left, d_right)
    out = _wide_product(formula, left, right)
    return out, tangent.astype(out.dtype)


def biased(
    values: Float[Array, "t *features"], bias: Float[Array, "*features"] | None
) -> Float[Array, "t *features"]:
    """The values plus a bias, where there is one."""
    return values if bias is None else values + bias.astype(values.dtype)


def capped(values: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """Each value x as cap·tanh(x/cap), which stays within ±cap; as it is without a cap.

    Source: Gemma Team 2024, "Gemma 2", §2.

    >>> capped(jnp.array([0.0, 1e9]), 30.0)
    Array([ 0., 30.], dtype=float32)
    """
    return values if cap is None else cap * jnp.tanh(values / cap)


def widened(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """The values in float32 or wider, for a nonlinearity."""
    return values.astype(wide(values.dtype))


def recomputed(function: Callable[..., Array]) -> Callable[..., Array]:
    """The same function, of which the backward pass keeps the arguments alone and computes the rest again.

    For what is cheap to compute and large to keep: on CPU, writing and reading what autodiff would keep of
    a nonlinearity or a norm takes longer than a second look at its argument. In a loop over layers that is
    unrolled, XLA may keep what it finds cheaper to keep: nothing forbids it (prevent_cse), for a barrier
    against it would also keep the recomputation out of the products that read it.
    """
    return jax.checkpoint(function, prevent_cse=False)
