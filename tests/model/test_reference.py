"""Three programs, one model: plain Python, `forward`, and flax.nnx, for every choice of Config."""

import dataclasses
import typing
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from benchmarks.peers import UnsupportedError, flax_nnx
from jaxformer import Config, forward, unstack
from jaxformer.reference import Transformer, from_params
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.models import NAMED, SEED, configs, random_params, random_tokens, within

LENGTH = 6


def check_reference(config: Config):
    params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, LENGTH)
    expected = from_params(params, config).apply(tokens.tolist())
    assert from_params(unstack(params), config).apply(tokens.tolist()) == expected
    found = forward(params, config, tokens).logits
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@given(config=configs())
def test_forward_equals_the_plain_python_program(config: Config):
    with jax.enable_x64(True):
        check_reference(config)


def test_the_oracle_itself_on_a_model_small_enough_for_paper():
    """One token of one-hot states through one neuron: (1, 2) + relu(2·1)·(0, 3) = (1, 8)."""
    config = SimpleNamespace(
        n_layers=1, d_model=2, n_heads=1, d_head=1, d_mlp=1, n_vocab=2, n_kv_heads=None,
        position="none", norm="none", activation="relu", gated=False, bias="none",
        parallel=False, tied=False, attention_scale=None, window=None,
        unembed_bias=False, embedding_scale=1.0, scale_scores_by_layer=False, window_pattern="L",
        qk_norm="none", attention_soft_cap=None, logit_soft_cap=None,
    )  # fmt: skip
    attn = SimpleNamespace(
        W_Q=[[[[1]], [[0]]]], W_K=[[[[1]], [[0]]]], W_V=[[[[1]], [[0]]]], W_O=[[[[0, 0]]]],
        b_Q=None, b_K=None, b_V=None, b_O=None, norm_Q=None, norm_K=None,
    )  # fmt: skip
    none = {"W_gate": None, "b_in": None, "b_gate": None, "b_out": None}
    mlp = SimpleNamespace(W_in=[[[2], [0]]], W_out=[[[0, 3]]], **none)
    norms = {"attn_norm": None, "mlp_norm": None, "attn_post_norm": None, "mlp_post_norm": None}
    weights = SimpleNamespace(
        blocks=SimpleNamespace(attn=attn, mlp=mlp, **norms), final_norm=None,
        W_E=[[1, 2], [0, 0]], W_pos=None, W_U=[[1, 0], [0, 1]], b_U=None,
    )  # fmt: skip
    assert Transformer(config, weights).apply([0]) == [[1, 8]]


def nnx_logits_and_gradients(params, config: Config, tokens, weights):
    graph, state = flax_nnx.nnx.split(flax_nnx.build(params, config))

    def weighted(state):
        logits = flax_nnx.nnx.merge(graph, state)(tokens[None])[0]
        return (logits * weights).sum(), logits

    gradient, logits = jax.jit(jax.grad(weighted, has_aux=True))(state)
    return logits, flax_nnx.read(flax_nnx.nnx.merge(graph, gradient), config)


def check_nnx(config: Config, dtype, tolerance: float):
    params, tokens = random_params(config, dtype=dtype), random_tokens(config, LENGTH)
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.standard_normal((LENGTH, config.n_vocab)), dtype)

    def weighted(params):
        logits = forward(params, config, tokens).logits
        return (logits * weights).sum(), logits

    ours, logits = jax.jit(jax.grad(weighted, has_aux=True))(params)
    with jax.numpy_dtype_promotion("standard"):
        theirs, gradients = nnx_logits_and_gradients(params, config, tokens, weights)
    scale = max(1.0, float(jnp.abs(logits).max()))
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=tolerance * scale)
    assert jax.tree.structure(ours) == jax.tree.structure(gradients)
    steepest = max(1.0, *(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(ours)))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(gradients), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * steepest, err_msg=str(path))


one_layer = partial(dataclasses.replace, SEED, n_layers=1)
REST = {
    "gelu": one_layer(activation="gelu", norm="rms", position="sinusoidal"),
    "squared": one_layer(activation="relu_squared", gated=True, norm="layer", bias="qkv"),
    "multi_query": one_layer(n_kv_heads=1, attention_scale=0.3, tied=True, bias="all"),
    "all_but_qkv": one_layer(norm="layer", bias="all_but_qkv"),
    "all_but_attention": one_layer(norm="layer", bias="all_but_attention", gated=True),
    "attention": one_layer(norm="layer", bias="attention"),
}
"""With NAMED, every value of every choice."""

STRANGE = ("gemma", "olmo")
"""Of them, those that flax.nnx does not have."""


@pytest.mark.parametrize("name", [*NAMED, *REST])
def test_each_named_forward_equals_the_plain_python_program(name: str, x64):
    check_reference((NAMED | REST)[name])


@pytest.mark.slow(unless=("attention_only", "classic"))
@pytest.mark.parametrize("name", [name for name in NAMED | REST if name not in STRANGE])
def test_forward_and_its_gradient_equal_flax_nnx_in_float64(name: str, x64):
    check_nnx((NAMED | REST)[name], jnp.float64, 1e-10)


@pytest.mark.parametrize("name", STRANGE)
def test_flax_nnx_refuses_what_it_does_not_have(name: str):
    config = NAMED[name]
    with raises(UnsupportedError, "flax-nnx", f"rotary.scaling={config.rotary.scaling!r}"):
        flax_nnx.build(random_params(config), config)


@pytest.mark.slow
@examples(4)
@given(config=configs())
def test_any_forward_and_its_gradient_equal_flax_nnx_in_float64(config: Config):
    config = dataclasses.replace(within(config, flax_nnx.KNOWN), n_layers=1)
    with jax.enable_x64(True):
        check_nnx(config, jnp.float64, 1e-10)


def test_named_and_rest_hold_every_value_of_every_choice():
    models = [*NAMED.values(), *REST.values()]
    for field, hint in typing.get_type_hints(Config).items():
        for value in typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ():
            assert any(getattr(model, field) == value for model in models), f"{field}={value}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention_only", "classic"])
def test_forward_and_its_gradient_equal_flax_nnx_in_float32(name: str):
    check_nnx(NAMED[name], jnp.float32, 1e-5)


def test_tokens_outside_the_vocabulary_are_refused_by_the_oracle_too():
    params = random_params(SEED)
    with raises(ValueError, 11):
        from_params(params, SEED).apply([11])
