"""One training step: loss, gradient, update; and many steps in one compiled call."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import Compute, Config, Params, forward, init
from tests.helpers.models import NAMED, SEED, random_params
from tests.helpers.runs import batches_of
from train.compiled import many_steps, validation_sums
from train.data.batches import Batch, cover
from train.optimizer import make_optimizer
from train.recipe import Optimizer
from train.step import StepOptions, TrainState, loss_and_gradient, summed_loss, train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")


def start(config: Config, steps: int = 8, **settings: Any):
    chosen: dict[str, Any] = {"warmup": 2} | settings
    optimizer = make_optimizer(config, Optimizer(**chosen), steps)
    params: Any = init(config, jax.random.key(0))
    return optimizer, TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def some_batch(config: Config, rows: int = 6, context: int = 5, seed: int = 0) -> Batch:
    """Return random windows; about half of the targets count, a different number in each row."""
    rng = np.random.default_rng(seed)
    windows = rng.integers(0, config.n_vocab, (rows, context + 1)).astype(np.int32)
    counted = rng.random((rows, context)) < np.linspace(0.1, 0.9, rows)[:, None]
    return Batch(jnp.asarray(windows), jnp.asarray(counted))


def assert_close(a: Any, b: Any, rtol: float, atol: float = 0.0) -> None:
    """Compare; `atol` is scaled with an array's largest value if that is above 1, as is the rounding of its sums."""

    def close(x: Any, y: Any) -> None:
        largest = max(1.0, float(np.abs(y).max(initial=0.0)))
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol * largest)

    jax.tree.map(close, a, b)


# --- the loss and what counts in it ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seed", "classic"])
def test_the_validation_loss_is_the_mean_over_all_targets(name: str):
    config = NAMED[name]
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, config.n_vocab, 50).astype(np.int32)
    batches = jax.tree.map(jnp.asarray, Batch(*cover(tokens, 3, 8)))
    total = float(np.sum(validation_sums(config)(params, batches)))
    by_hand = 0.0
    for start in range(0, 49, 8):
        window = tokens[start : start + 9]
        logits = forward(params, config, jnp.asarray(window[:-1])).logits
        by_hand -= float(jax.nn.log_softmax(logits)[jnp.arange(len(logits)), window[1:]].sum())
    assert total == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_mean_over_the_targets_that_count():
    params, batch = random_params(SEED), some_batch(SEED)

    def mean(params: Params) -> jax.Array:
        total = jnp.zeros(())
        for window, counted in zip(batch.windows, batch.counted, strict=True):
            log_p = jax.nn.log_softmax(forward(params, SEED, window[:-1]).logits)
            total -= (log_p[jnp.arange(5), window[1:]] * counted).sum()
        return total / batch.counted.sum()

    expected = jax.value_and_grad(mean)(params)
    assert_close(loss_and_gradient(params, SEED, batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_targets_that_do_not_count_have_no_influence(accumulate: int):
    params, batch = random_params(SEED), some_batch(SEED)
    rows = batch.counted.at[:, -1].set(False).at[2].set(False)
    batch = Batch(batch.windows, rows)
    other = batch.windows.at[:, -1].add(3) % SEED.n_vocab  # the last token is only a target
    other = other.at[2].set(0)
    step = jax.jit(
        lambda batch: loss_and_gradient(params, SEED, batch, StepOptions(accumulate=accumulate))
    )
    one, two = step(batch), step(Batch(other, rows))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    without = step(Batch(other, rows.at[0].set(True)))
    assert float(without[0]) != float(one[0])


@pytest.mark.slow
def test_a_batch_in_which_nothing_counts_changes_nothing():
    params, batch = random_params(SEED), some_batch(SEED)
    nothing = Batch(batch.windows, jnp.zeros_like(batch.counted))
    loss, gradient = loss_and_gradient(params, SEED, nothing)
    assert float(loss) == float(optax.tree.norm(gradient)) == 0.0


@pytest.mark.slow(unless=("2-seed",))
@pytest.mark.parametrize("name", ["seed", "modern", "classic"])
@pytest.mark.parametrize("accumulate", [2, 6])
def test_gradient_accumulation_gives_the_same_loss_and_gradient(name: str, accumulate: int):
    """Micro-batches with different numbers of targets that count, one of them without any."""
    config = NAMED[name]
    params, batch = random_params(config), some_batch(config)
    batch = Batch(batch.windows, batch.counted.at[0].set(False))
    numbers = batch.counted.reshape(-1, accumulate, 5).sum((0, 2))
    assert len(set(numbers.tolist())) > 1
    step = jax.jit(loss_and_gradient, static_argnames=("config", "options"))
    whole = step(params, config, batch)
    parts = step(params, config, batch, options=StepOptions(accumulate=accumulate))
    assert_close(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_in_64_bits_accumulated_gradients_are_exact():
    """Except the loss, which is computed in 32 bits."""
    params, batch = random_params(SEED, dtype=jnp.float64), some_batch(SEED)
    compute = Compute(dtype="float64")
    whole, gradient = loss_and_gradient(params, SEED, batch, StepOptions(compute=compute))
    loss, summed = loss_and_gradient(
        params, SEED, batch, StepOptions(compute=compute, accumulate=3)
    )
    assert loss.dtype == whole.dtype == jnp.float32
    assert_close(loss, whole, rtol=1e-6)
    assert jax.tree.leaves(summed)[0].dtype == jnp.float64
    assert_close(summed, gradient, rtol=1e-6, atol=1e-7)


# --- steps ---


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_many_steps_in_one_call_are_the_single_steps_and_compile_once(accumulate: int):
    tokens = np.random.default_rng(0).integers(0, 11, 200).astype(np.int32)
    optimizer, state = start(SEED)
    singles, losses = state, []
    how = StepOptions(accumulate=accumulate)
    one = jax.jit(lambda state, batch: train_step(state, SEED, batch, optimizer, how))
    for i in range(6):
        batch = jax.tree.map(lambda x: x[0], batches_of(tokens, np.array([i]), 4, 6))
        singles, metrics = one(singles, batch)
        losses.append(float(metrics["loss"]))
    together = many_steps(SEED, optimizer, how)
    state, first = together(state, batches_of(tokens, np.arange(3), 4, 6))
    state, second = together(state, batches_of(tokens, np.arange(3, 6), 4, 6))
    assert getattr(together, "_cache_size")() == 1  # noqa: B009  not in Callable
    assert int(state.step) == 6
    np.testing.assert_allclose([*first["loss"], *second["loss"]], losses, rtol=1e-5)
    assert_close(state.params, singles.params, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_state_s_buffers_are_donated():
    optimizer, state = start(SEED)
    steps = many_steps(SEED, optimizer)
    steps(state, batches_of(np.arange(11), np.arange(1), 2, 4))
    assert state.params.W_E.is_deleted()


@pytest.mark.slow(unless=("muon",))
@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_the_update_is_the_optimizer_s_after_clipping(rule: str):
    optimizer, state = start(SEED, name=rule, clip=0.1, warmup=0)
    batch = some_batch(SEED)
    after, metrics = jax.jit(lambda s: train_step(s, SEED, batch, optimizer))(state)

    def mean(params: Params) -> jax.Array:
        return summed_loss(params, SEED, batch) / batch.counted.sum()

    params: Any = state.params
    gradient = jax.jit(jax.grad(mean))(params)
    norm = float(optax.tree.norm(gradient))
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-6)
    assert norm > 0.1
    changes, _ = optimizer.update(gradient, state.optimizer, params)
    assert_close(after.params, optax.apply_updates(params, changes), rtol=1e-5, atol=1e-7)


@pytest.mark.slow(unless=("attention_only-adamw",))
@pytest.mark.parametrize(
    ("name", "rule"), [*((name, "adamw") for name in NAMED), ("modern", "muon")]
)
def test_every_model_learns_to_repeat(name: str, rule: str):
    """On a cycle of period 3 the loss falls below a tenth of the uniform loss."""
    config, rate = NAMED[name], {"adamw": 1e-2, "muon": 3e-2}[rule]
    optimizer, state = start(config, steps=150, name=rule, learning_rate=rate)
    tokens = (np.arange(300) % 3).astype(np.int32)
    steps = many_steps(config, optimizer)
    _, history = steps(state, batches_of(tokens, np.arange(150), 4, 6))
    assert float(history["loss"][-1]) < 0.1 * math.log(config.n_vocab)
