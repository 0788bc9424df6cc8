"""The stream taken apart where layers end in norms: parts of what is normed are parts of the normed."""

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
def test_parts_of_a_sum_that_is_normed_are_parts_of_the_normed_sum(name: str, x64):
    """Whose norms have no bias, and whose MLPs have none either."""
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
    for site, asked in (
        ("attn_post_scale", lambda acts: head_results(params, config, acts)),
        ("mlp_post_scale", lambda acts: neuron_results(params, config, acts, 1)),
        ("mlp_post_scale", lambda acts: full_decomposition(params, config, acts, neurons=True)),
    ):
        with raises(ValueError, site, "capture"):
            asked({name: value for name, value in acts.items() if name != site})
