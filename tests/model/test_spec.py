"""The declarations of parameters, and the scale at which every model begins."""

import dataclasses
import math
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxformer import Config, abstract, count, forward, init, partition, specs
from jaxformer.model.mlp import ACTIVATIONS
from jaxformer.model.spec import MOMENTS, Spec, is_spec
from tests.helpers.examples import examples
from tests.helpers.models import NAMED, SEED, changed, configs


@given(config=configs())
@examples(10)
def test_init_abstract_partition_and_count_tell_of_the_same_arrays(config: Config):
    shapes = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    assert shapes == abstract(config)
    assert count(config) == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    layout = partition(config, {"d": "data"})
    for shape, places in zip(jax.tree.leaves(shapes), jax.tree.leaves(layout), strict=True):
        assert len(shape.shape) == len(places)


def test_a_parameter_is_drawn_by_its_own_name():
    """Another choice elsewhere in the Config leaves the draw of W_Q as it was."""
    key = jax.random.key(3)
    one = init(SEED, key).blocks.attn.W_Q
    other = init(dataclasses.replace(SEED, bias="all", norm="layer", d_mlp=0), key).blocks.attn.W_Q
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(init(SEED, jax.random.key(4)).blocks.attn.W_Q, one)


@pytest.mark.slow(unless=("classic", "gemma", "olmo"))
@pytest.mark.parametrize("name", ["seed", "modern", "classic", "gemma", "olmo"])
def test_draws_have_the_declared_standard_deviation(name: str):
    wide = dataclasses.replace(NAMED[name], d_model=256, d_mlp=512, d_head=32, n_vocab=500)

    def check(spec: Spec, array):
        if spec.std:
            assert np.std(array) == pytest.approx(spec.std, rel=0.05)
        else:
            assert (array == spec.mean).all()

    jax.tree.map(check, specs(wide), init(wide, jax.random.key(0)), is_leaf=is_spec)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_second_moments_are_those_of_the_functions(name: str):
    x = np.linspace(-12, 12, 200_001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    squares = np.square(np.asarray(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), np.float64))
    moment = float((squares * density).sum() * (x[1] - x[0]))
    assert MOMENTS[name][0] == pytest.approx(moment, rel=1e-5)


SCALES = {
    "seed": {},
    "unscaled": {"attention_scale": 1.0},
    "squared": {"activation": "relu_squared"},
    "gated": {"activation": "silu", "gated": True},
    "gated_squared": {"activation": "relu_squared", "gated": True},
    "attention_only": {"d_mlp": 0},
    "classic": {"norm": "layer", "position": "learned", "n_context": 32, "activation": "gelu"},
    "modern": {"norm": "rms", "position": "rotary", "activation": "silu", "gated": True, "n_kv_heads": 1},
    "parallel": {"norm": "layer", "position": "sinusoidal", "parallel": True},
    "gemma": {"norm": "rms", "norm_place": "both", "norm_plus_one": True, "qk_norm": "head", "position": "rotary",
              "activation": "gelu_tanh", "gated": True, "embedding_scale": 8.0, "attention_soft_cap": 50.0,
              "logit_soft_cap": 30.0, "attention_scale": 1.0},
    "olmo": {"norm": "rms", "norm_place": "after", "qk_norm": "all", "position": "rotary", "activation": "silu",
             "gated": True, "n_kv_heads": 1},
    "after": {"norm": "layer", "norm_place": "after", "activation": "relu_squared", "bias": "all"},
    "unnormed_but_qk": {"qk_norm": "head", "norm_plus_one": True},
}  # fmt: skip
CORNERS = [*product(["seed"], [64, 1024], [1, 48]), *product(SCALES, [64], [48])]
"""All corners of width and depth for the seed, a deep one for every other choice."""


@pytest.mark.slow(unless=("seed-64-48",))
@pytest.mark.parametrize(("choices", "d_model", "n_layers"), sorted(set(CORNERS)))
def test_stream_scores_and_logits_begin_at_scale_one(choices: str, d_model: int, n_layers: int):
    config = Config(n_layers=n_layers, d_model=d_model, n_heads=2, d_head=16, d_mlp=64, n_vocab=100)
    config = changed(config, SCALES[choices])
    tokens = jax.random.randint(jax.random.key(1), (32,), 0, config.n_vocab)

    @jax.jit
    def scales(key):
        out = forward(init(config, key), config, tokens, capture=("resid_post", "scores"))
        scores = out.activations["scores"]
        spread = jnp.sqrt(jnp.mean(jnp.square(scores), where=jnp.isfinite(scores)))
        stream = jnp.sqrt(jnp.square(out.activations["resid_post"]).mean(axis=(1, 2)))
        return stream.min(), stream.max(), spread, out.logits.std()

    least, most, spread, logits = scales(jax.random.key(0))
    assert least > 0.9
    assert most < 2.5
    assert 0.7 < spread < 3.5
    assert 0.7 < logits < 2.5


def test_an_integer_is_a_seed():
    expected = init(SEED, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, init(SEED, 3), expected)
    many = jax.vmap(lambda seed: init(SEED, seed))(jnp.arange(4))
    np.testing.assert_array_equal(many.W_E[3], expected.W_E)
