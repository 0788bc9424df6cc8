"""The backward pass: its own formulas against autodiff, and what it keeps of the forward pass."""

import dataclasses
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Compute, forward, init
from jaxformer.model.attention import softmax
from tests.helpers.models import NAMED, every_model, random_params, random_tokens
from train.compiled import many_steps
from train.data.batches import Batch
from train.optimizer import make_optimizer
from train.recipe import Optimizer
from train.step import StepOptions, TrainState

KEY = jax.random.key(0)
CLASSIC_16 = dataclasses.replace(NAMED["classic"], n_context=16)


def plain_softmax(x: Any) -> Any:
    return jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)


@pytest.mark.slow
def test_the_softmax_s_derivatives_are_those_of_its_formula(x64):
    scores, change = jax.random.normal(KEY, (2, 3, 4, 5))
    scores = scores.at[..., 3].set(-jnp.inf)  # masked
    for formula in (softmax, plain_softmax):
        assert np.isfinite(jax.jacrev(formula)(scores)).all()
    expected = jax.jvp(plain_softmax, (scores,), (change,))
    for ours, theirs in zip(jax.jvp(softmax, (scores,), (change,)), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    for derivative in (jax.jacrev, jax.jacfwd, jax.hessian):
        ours, theirs = (derivative(formula)(scores[0, :2]) for formula in (softmax, plain_softmax))
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.slow(unless=("seed",))
@every_model
def test_the_gradient_is_the_slope_of_the_loss(name: str, x64):
    """Against central differences along a random direction, in float64."""
    config = NAMED[name]
    params = random_params(config, dtype=jnp.float64)
    tokens = random_tokens(config, 6)
    direction = random_params(config, seed=1, dtype=jnp.float64)

    @jax.jit
    def loss(distance: Any) -> Any:
        moved = jax.tree.map(lambda p, d: p + distance * d, params, direction)
        logits = forward(moved, config, tokens[:-1]).logits
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[1:, None], axis=1).mean()

    slope = jax.jit(jax.grad(loss))(0.0)
    forwards = jax.jit(lambda x: jax.jvp(loss, (x,), (jnp.ones_like(x),))[1])(0.0)
    step = 1e-5
    by_hand = (loss(step) - loss(-step)) / (2 * step)
    assert float(slope) == pytest.approx(float(by_hand), rel=1e-6, abs=1e-9)
    assert float(forwards) == pytest.approx(float(slope), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seed", "classic", "modern"])
def test_the_backward_pass_keeps_little(name: str):
    """Of an MLP what goes into and out of its nonlinearity, of attention the pattern, each once."""
    config = NAMED[name]
    params, tokens = init(config, KEY), random_tokens(config, 7)
    _, backward = jax.vjp(lambda p: forward(p, config, tokens).logits, params)
    layers, t = config.n_layers, len(tokens)
    kept = Counter(x.shape for x in jax.tree.leaves(backward))
    assert kept[(layers, config.n_heads, t, t)] == 1
    assert kept[(layers, t, config.d_mlp)] <= 2 + config.gated


@pytest.mark.slow
def test_in_bfloat16_the_loss_curve_is_float32_s_within_a_hundredth(standard_promotion):
    tokens = np.random.default_rng(0).integers(0, 3, (80, 4, 17)).cumsum(-1) % 11
    batches = Batch(jnp.asarray(tokens, jnp.int32), jnp.ones((80, 4, 16), bool))
    curves = []
    for dtype in (None, "bfloat16"):
        optimizer = make_optimizer(CLASSIC_16, Optimizer(warmup=5), 80)
        params: Any = init(CLASSIC_16, KEY)
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        steps = many_steps(CLASSIC_16, optimizer, StepOptions(compute=Compute(dtype=dtype)))
        state, history = steps(state, batches)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
        curves.append(np.asarray(history["loss"]))
    assert curves[0][-1] < 0.8 * curves[0][0]
    assert not np.array_equal(*curves)
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.01)
