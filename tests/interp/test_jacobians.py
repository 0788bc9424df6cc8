"""Derivatives between sites: products agree with the full Jacobian and with small steps."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import forward
from jaxformer.interp.jacobians import _check_place, jacobian, jvp_between, vjp_between
from jaxformer.sites import MODEL_SITES, identity
from tests.helpers.errors import raises
from tests.helpers.models import MODERN, SEED, random_params, random_tokens

LENGTH = 5

PAIRS: dict[str, Any] = {
    "a stream and a later one": (("resid_pre", 1), ("resid_post", -1), 0, 3),
    "one layer": (("v", 0), ("attn_out", 0), None, 4),
    "the pattern by the embedding": (("embed", None), ("pattern", 1), 1, 4),
    "the logits by a pattern": (("pattern", 0), ("logits", None), 3, None),
    "full": (("resid_mid", 0), ("pre_linear", 1), None, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", PAIRS)
def test_products_between_sites_agree_with_the_jacobian_and_with_small_steps(what: str, x64):
    source, target, position, end = PAIRS[what]
    params, tokens = random_params(MODERN, dtype=jnp.float64), random_tokens(MODERN, LENGTH)
    places = (*source, position), (*target, end)
    find = jax.jit(lambda tokens: jacobian(params, MODERN, tokens, *places))
    full = find(tokens)

    def value(node, at, move=None):
        """Return the value at `at`, with the source changed if `move` is given."""
        site, layer = node

        def edit(name, here, value):
            if name != source[0] or (source[1] is not None and here is None):
                return value
            axis = 1 if name == "pattern" else 0
            put = (slice(None),) * axis + (slice(None) if position is None else position,)
            return value + jnp.zeros_like(value).at[put].set(move) * (
                1.0 if source[1] is None else jnp.asarray(here == source[1], value.dtype)
            )

        moved = identity if move is None else edit
        out = forward(params, MODERN, tokens, capture=(site,), edit=moved).activations[site]
        out = out if layer is None else out[layer]
        return out if at is None else jnp.take(out, at, 1 if site == "pattern" else 0)

    rng = np.random.default_rng(0)
    v = jnp.asarray(rng.standard_normal(value(source, position).shape))
    u = jnp.asarray(rng.standard_normal(value(target, end).shape))
    assert full.shape == u.shape + v.shape
    pushed = jvp_between(params, MODERN, tokens, *places, v)
    pulled = vjp_between(params, MODERN, tokens, *places, u)
    np.testing.assert_allclose(pushed, jnp.tensordot(full, v, v.ndim), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(pulled, jnp.tensordot(u, full, u.ndim), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose((u * pushed).sum(), (pulled * v).sum(), rtol=1e-11)
    small = 1e-6
    slope = (value(target, end, small * v) - value(target, end, -small * v)) / (2 * small)
    assert jnp.abs(slope).max() > 1e-3
    np.testing.assert_allclose(pushed, slope, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_positions_of_a_jacobian_may_be_traced_and_later_ones_have_no_effect():
    params, tokens = random_params(SEED), random_tokens(SEED, LENGTH)

    def one(position):
        places = ("resid_pre", 0, position), ("resid_post", -1, 2)
        return jacobian(params, SEED, tokens, *places)

    each = jax.jit(jax.vmap(one))(jnp.arange(LENGTH))
    assert each.shape == (LENGTH, 8, 8)
    assert jnp.abs(each[:3]).max(axis=(1, 2)).min() > 0
    assert (each[3:] == 0).all()
    assert jnp.isnan(jax.vmap(one)(jnp.array([LENGTH, -LENGTH - 1]))).all()


def test_a_traced_position_out_of_range_gives_nan():
    params, tokens = random_params(SEED), random_tokens(SEED, LENGTH)

    @jax.jit
    def pushed(target: Any) -> Any:
        places = ("resid_pre", 0), ("resid_post", -1, target)
        return vjp_between(params, SEED, tokens, *places, jnp.ones(8))

    assert jnp.isfinite(pushed(4)).all()
    assert jnp.isnan(pushed(5)).all()


RUN = random_params(SEED), SEED, random_tokens(SEED, LENGTH)
Z, LOGITS = ("z", 0), ("logits", None)
complex_direction = jnp.ones((5, 4, 4), jnp.complex64)
REFUSED = {
    "an earlier target": (lambda: jacobian(*RUN, ("resid_post", 1), ("z", 1)), ("('z', 1)", "('resid_post', 1)")),
    "a layer outside": (lambda: jacobian(*RUN, ("z", 2), LOGITS), ("layer=2", "z")),
    "no layer": (lambda: jacobian(*RUN, ("z", None), LOGITS), ("layer=None", "z")),
    "a layer of the logits": (lambda: jacobian(*RUN, Z, ("logits", 1)), ("layer=1", "logits")),
    "no place": (lambda: _check_place("embed"), ("embed",)),
    "half a layer": (lambda: _check_place(("z", 1.0)), ("layer=1.0", "z")),
    "a complex direction": (lambda: inspect.unwrap(jvp_between)(*RUN, Z, LOGITS, complex_direction),
                            ("complex64", "source", "float32")),
    "a position outside": (lambda: jacobian(*RUN, (*Z, 5), ("z", 1)), (5,)),
    "a direction of another shape": (lambda: jvp_between(*RUN, Z, LOGITS, jnp.ones(3)),
                                     ("(3,)", "source", "(5, 4, 4)")),
}  # fmt: skip


@pytest.mark.parametrize(("call", "named"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused(call, named: tuple):
    with raises(ValueError, *named):
        call()


def test_sites_of_no_layer_come_before_or_after_all_layers():
    """The order of places depends on it: sites with embed in their name come first, the others last."""
    assert {site for site in MODEL_SITES if "embed" in site} == {"embed", "pos_embed"}
