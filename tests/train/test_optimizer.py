"""Optimizers: which parameters get which update, and that each update is the published one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxformer import Config
from jaxformer.model.spec import path_name
from tests.helpers.errors import raises
from tests.helpers.models import CLASSIC, MODERN, NAMED, SEED, random_params, three_models
from train.optimizer import decays, make_optimizer, orthogonal, schedule
from train.recipe import Optimizer

pytestmark = pytest.mark.usefixtures("standard_promotion")


def by_name(tree: Any, is_leaf: Any = None) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {path_name(path): leaf for path, leaf in leaves}


def first_update(config: Config, gradient: Any, **settings: Any):
    """Return the first update of random parameters, without warm-up or clipping, and the parameters, by name."""
    optimizer = make_optimizer(config, Optimizer(warmup=0, clip=1e9, **settings), 100)
    params: Any = random_params(config)
    changes, _ = optimizer.update(gradient, optimizer.init(params), params)
    return by_name(changes), by_name(params)


# --- which parameters ---


@three_models
def test_weight_decay_is_for_matrices(name: str):
    decayed = by_name(decays(NAMED[name]))
    assert decayed.keys() == by_name(random_params(NAMED[name])).keys()
    for parameter, decay in decayed.items():
        last = parameter.split(".")[-1]
        assert decay == (last.startswith("W_") and last not in ("W_E", "W_pos")), parameter


@three_models
def test_muon_takes_the_matrices_of_the_blocks_and_adam_the_rest(name: str):
    is_leaf = lambda x: isinstance(x, contrib.MuonDimensionNumbers)  # noqa: E731
    dimensions = by_name(orthogonal(NAMED[name]), is_leaf)
    every = by_name(random_params(NAMED[name]))
    matrices = {p for p in every if p.startswith("blocks.") and ".W_" in p}
    assert dimensions.keys() == matrices
    for parameter, (reads, writes) in dimensions.items():
        assert sorted((0, *reads, *writes)) == list(range(every[parameter].ndim))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["adamw", "muon"])
@three_models
def test_without_a_gradient_only_decayed_parameters_shrink(name: str, rule: str):
    config = NAMED[name]
    nothing = jax.tree.map(jnp.zeros_like, random_params(config))
    changes, params = first_update(config, nothing, name=rule, learning_rate=0.5, weight_decay=0.2)
    decayed = {p for p, decay in by_name(decays(config)).items() if decay}
    if rule == "muon":
        decayed = {p for p in decayed if p.startswith("blocks.")}
    for parameter, change in changes.items():
        share = 0.1 if parameter in decayed else 0.0
        np.testing.assert_allclose(change, -share * params[parameter], rtol=1e-6)


# --- the updates ---


def as_matrices(config: Config, parameter: str, values: Any) -> np.ndarray:
    """Return the matrices of the layers, [l reads writes], with all heads along one axis."""
    array = np.asarray(values)
    reads = config.n_heads * config.d_head if parameter.endswith("W_O") else array.shape[1]
    return array.reshape(array.shape[0], reads, -1)


@pytest.mark.slow
@three_models
def test_muon_s_updates_are_orthogonal_layer_by_layer_and_over_all_heads(name: str):
    config = NAMED[name]
    gradient, settings = random_params(config, seed=1), {"learning_rate": 1.0, "weight_decay": 0.0}
    changes, _ = first_update(config, gradient, name="muon", **settings)
    matrices = [p for p in changes if p.startswith("blocks.") and ".W_" in p]
    assert len(matrices) >= 4
    for parameter in matrices:
        each = as_matrices(config, parameter, changes[parameter])
        scale = max(1, each.shape[2] / each.shape[1]) ** 0.5
        values = np.linalg.svd(each / scale, compute_uv=False)
        assert values.shape[0] == config.n_layers
        assert values.min() > 0.5, (parameter, values)
        assert values.max() < 1.3, (parameter, values)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameter", ["blocks.attn.W_Q", "blocks.attn.W_K", "blocks.attn.W_O", "blocks.mlp.W_in"]
)
def test_muon_is_optax_s_on_each_layer_s_matrix(parameter: str):
    settings = Optimizer(
        name="muon", learning_rate=0.02, momentum=0.9, weight_decay=0.3, warmup=2, clip=1e9
    )
    whole = make_optimizer(MODERN, settings, 20)
    alone = contrib.muon(schedule(settings, 0.02, 20), beta=0.9, weight_decay=0.3)
    params: Any = random_params(MODERN)

    def matrix(tree: Any) -> Any:
        return jnp.asarray(as_matrices(MODERN, parameter, by_name(tree)[parameter])[1])

    state, by_hand = whole.init(params), matrix(params)
    hand_state = alone.init(by_hand)
    for seed in range(3):
        gradient: Any = random_params(MODERN, seed=seed + 1)
        changes, state = whole.update(gradient, state, params)
        change: Any
        change, hand_state = alone.update(matrix(gradient), hand_state, by_hand)
        np.testing.assert_allclose(matrix(changes), change, rtol=1e-4, atol=1e-6)
        params, by_hand = optax.apply_updates(params, changes), by_hand + change


def test_adam_updates_the_other_parameters_at_its_own_learning_rate():
    rates = {"learning_rate": 0.02, "adam_learning_rate": 1e-3}
    gradient: Any = random_params(CLASSIC, seed=1)
    changes, params = first_update(CLASSIC, gradient, name="muon", beta1=0.8, **rates)
    adam = optax.nadam(1e-3, b1=0.8, b2=0.99)
    for parameter in ("W_E", "W_pos", "final_norm.w", "blocks.attn.b_Q"):
        alone = by_name(gradient)[parameter]
        expected: Any = adam.update(alone, adam.init(params[parameter]))[0]
        np.testing.assert_allclose(changes[parameter], expected, rtol=1e-6)


def test_clipping_comes_before_the_rule():
    gradient: Any = random_params(SEED, seed=1)
    norm = float(optax.tree.norm(gradient))
    small = jax.tree.map(lambda g: g * 1e-7, gradient)  # so small that Adam's epsilon matters
    optimizer, plain = (
        make_optimizer(SEED, Optimizer(warmup=0, clip=clip), 100) for clip in (norm * 1e-8, 1e9)
    )
    params: Any = random_params(SEED)
    changes, _ = optimizer.update(small, optimizer.init(params), params)
    tenth = jax.tree.map(lambda g: g * 0.1, small)
    expected, _ = plain.update(tenth, plain.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), changes, expected)


# --- the schedules ---


def rates(settings: Optimizer, steps: int = 100) -> np.ndarray:
    rate = schedule(settings, settings.learning_rate, steps)
    return np.array([rate(step) for step in range(steps + 1)])


@pytest.mark.parametrize("shape", ["cosine", "stable"])
def test_the_schedule_warms_up(shape: Any):
    of_step = rates(Optimizer(learning_rate=1.0, warmup=10, schedule=shape))
    np.testing.assert_allclose(of_step[:11], np.arange(11) / 10, atol=1e-6)
    schedule(Optimizer(warmup=100, schedule=shape), 1.0, 1)  # fewer steps than the warm-up


def test_the_cosine_schedule_is_half_a_wave():
    of_step = rates(Optimizer(learning_rate=2.0, warmup=20, final_lr_fraction=0.2))
    wave = 0.5 * (1 + np.cos(np.pi * np.arange(81) / 80))
    np.testing.assert_allclose(of_step[20:], 2 * (0.2 + 0.8 * wave), rtol=1e-5)


def test_the_stable_schedule_is_constant_and_then_linear():
    stable: dict[str, Any] = {"schedule": "stable", "decay": 0.25}
    of_step = rates(Optimizer(learning_rate=2.0, warmup=20, final_lr_fraction=0.1, **stable))
    np.testing.assert_allclose(of_step[20:81], 2.0, rtol=1e-6)
    np.testing.assert_allclose(of_step[80:], np.linspace(2.0, 0.2, 21), rtol=1e-5)


# --- settings ---

BAD: dict[str, tuple[dict[str, Any], tuple[object, ...]]] = {
    "whole": ({"final_lr_fraction": 1.5}, ("final_lr_fraction=1.5", 1.0)),
    "beta": ({"beta2": 1.0}, ("beta2=1.0",)),
    "nan": ({"learning_rate": float("nan")}, ("learning_rate=nan",)),
    "zero": ({"name": "muon", "adam_learning_rate": 0.0}, ("adam_learning_rate=0.0",)),
}


@pytest.mark.parametrize("what", BAD)
def test_invalid_settings_are_refused(what: str):
    settings, named = BAD[what]
    with raises(ValueError, *named):
        Optimizer(**settings)
