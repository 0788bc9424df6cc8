"""The stream's products: what is rounded, and where."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import query


def test_narrow_products_are_summed_and_differentiated_in_their_own_dtypes():
    """Each product is rounded once, forwards; backwards the products stay narrow, and so fast."""
    state, directions = jnp.full((1, 256), 1.0, jnp.bfloat16), jnp.ones((256, 1), jnp.bfloat16)
    state = state.at[0, 0].set(1.0 / 128)
    assert float(query(state, directions)[0, 0]) == 255.0 + 1.0 / 128
    gradient = jax.make_jaxpr(jax.grad(lambda s, w: query(s, w).sum(), argnums=(0, 1)))
    equations: Any = _equations(gradient(state, directions))
    dots = [e for e in equations if e.primitive.name == "dot_general"]
    assert len(dots) == 3
    assert {v.aval.dtype.name for dot in dots for v in dot.invars} == {"bfloat16"}
    _, tangent = jax.jvp(query, (state, directions), (state, directions))
    assert tangent.dtype == jnp.float32


def _equations(jaxpr):
    """All equations, those of inner functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from _equations(getattr(inner, "jaxpr", inner))
