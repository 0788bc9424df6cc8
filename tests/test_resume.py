"""Going on from a layer is the rest of the pass, and a narrow last layer changes nothing at the places read."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxformer import Compute, Config, forward
from jaxformer.interp.edit import at, chain, patch
from jaxformer.interp.resume import forward_from
from jaxformer.sites import WHOLE, keep, shown
from tests.models import NAMED, compiled_flops, configs, random_params, random_tokens

LENGTH, READ = 5, jnp.array([-1, 1])


@settings(max_examples=8)
@given(config=configs().filter(lambda config: config.n_layers > 0))
def test_an_edit_of_all_sites_acts_as_in_a_whole_pass(config: Config):
    with jax.enable_x64(True):
        params = random_params(config, dtype=jnp.float64)
        tokens, last = random_tokens(config, LENGTH), config.n_layers - 1
        stream = forward(params, config, tokens, capture=("resid_pre",)).activations["resid_pre"]
        # A change of its own for each entry of a value, so that a misplaced row is seen.
        sites = (site for site in shown(config) if site not in WHOLE)
        edit = chain(
            *(at(site, last, lambda value: 1.2 * value + jnp.tanh(value)) for site in sites)
        )

        @partial(jax.jit, static_argnames="narrow")
        def rest(narrow: bool):
            return forward_from(
                params, config, stream[last], last, edit=edit, read=READ, narrow=narrow
            )

        expected = forward(params, config, tokens, edit=edit, read=READ).logits
        assert np.isfinite(expected).all()
        for narrow in (False, True):
            np.testing.assert_allclose(rest(narrow), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("kernel", ["einsum", "blocked"])
def test_from_any_layer_on_it_is_the_whole_pass(name: str, kernel, x64):
    config, compute = NAMED[name], Compute(kernel=kernel)
    params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, LENGTH)
    out = forward(params, config, tokens, capture=("resid_pre",))

    @jax.jit
    def rest(layer):
        stream = out.activations["resid_pre"][layer]
        narrow = forward_from(
            params, config, stream, layer, read=READ, narrow=True, compute=compute
        )
        return forward_from(params, config, stream, layer, compute=compute), narrow

    for layer in range(config.n_layers):
        whole, read = rest(layer)
        np.testing.assert_allclose(whole, out.logits, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(read, out.logits[READ], rtol=1e-9, atol=1e-9)


def test_a_part_that_is_read_nowhere_changes_nothing_in_a_narrow_layer(x64):
    config = NAMED["classic"]
    params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, LENGTH)
    out = forward(params, config, tokens, capture=("resid_pre",))

    def rest(position: int):
        edit = patch("mlp_out", 1, {"position": position}, 3.0)
        stream = out.activations["resid_pre"][1]
        return forward_from(params, config, stream, 1, edit=edit, read=READ, narrow=True)

    np.testing.assert_allclose(rest(2), out.logits[READ], rtol=1e-9, atol=1e-9)
    changed = np.abs(rest(1) - out.logits[READ]).max(axis=1)
    assert changed[0] < 1e-9 < 0.1 < changed[1]


def test_a_place_that_is_not_there_is_nan_inside_traced_code():
    config = NAMED["modern"]
    params, tokens = random_params(config), random_tokens(config, LENGTH)
    stream = forward(params, config, tokens, capture=("resid_pre",)).activations["resid_pre"][0]

    @jax.jit
    def rest(read):
        return forward_from(params, config, stream, 0, edit=keep, read=read, narrow=True)

    found = np.isnan(rest(jnp.array([-1, 5, -6])))
    np.testing.assert_array_equal(found.all(axis=1), [False, True, True])
    np.testing.assert_array_equal(found.any(axis=1), [False, True, True])


def test_narrow_saves_most_of_the_last_layer():
    config = Config(n_layers=1, d_model=64, n_heads=4, d_head=16, d_mlp=256, n_vocab=2)
    params, stream = random_params(config), jnp.ones((64, 64))

    def flops(narrow: bool) -> float:
        def rest(params, stream):
            return forward_from(params, config, stream, 0, read=jnp.array([-1]), narrow=narrow)

        return compiled_flops(rest, params, stream)

    assert flops(narrow=True) < 0.3 * flops(narrow=False)  # keys and values are 2 parts of 12


def test_narrow_needs_to_know_what_is_read():
    config = NAMED["seed"]
    with pytest.raises(ValueError, match="narrow=True needs read"):
        forward_from(random_params(config), config, jnp.ones((3, 8)), 0, narrow=True)
