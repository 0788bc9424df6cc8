"""Decompositions of models with a norm after each layer: components sum to the output of the norm."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.interp.decompose import full_decomposition, head_results, neuron_results
from jaxformer.interp.lens import direct_logit_attribution, logit_directions
from tests.helpers.errors import raises
from tests.helpers.exact import LENGTH, agree, captured
from tests.helpers.models import NAMED


@pytest.mark.slow(unless=("gemma",))
@pytest.mark.parametrize("name", ["gemma", "olmo"])
def test_components_of_a_layer_sum_to_its_normed_output(name: str, x64):
    """For models without biases in norms and MLPs."""
    config = NAMED[name]
    params, out = captured(config)
    acts = out.activations
    heads = head_results(params, config, acts).reshape(2, 4, LENGTH, 8).sum(1)
    bias = full_decomposition(params, config, acts)[-1]
    agree(heads.sum(0) + bias, acts["attn_out"].sum(0))
    assert np.any(bias) == (params.blocks.attn.b_O is not None)
    neurons, one = neuron_results(params, config, acts, 1), jnp.arange(8.0)
    agree(neurons.sum(0), acts["mlp_out"][1])
    agree(neuron_results(params, config, acts, 1, onto=one), neurons @ one)
    towards = logit_directions(params, config, acts, 3, 5)
    written = direct_logit_attribution(params, config, acts, neurons, 3, 5)
    agree(neuron_results(params, config, acts, 1, onto=towards), written)
    for site, decompose in (
        ("attn_post_scale", lambda acts: head_results(params, config, acts)),
        ("mlp_post_scale", lambda acts: neuron_results(params, config, acts, 1)),
        ("mlp_post_scale", lambda acts: full_decomposition(params, config, acts, neurons=True)),
    ):
        with raises(ValueError, site, "capture"):
            decompose({name: value for name, value in acts.items() if name != site})
