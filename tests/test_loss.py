"""The loss in chunks of the vocabulary: the same numbers, without all logits at once."""

import dataclasses
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import Compute, Config, forward
from jaxformer.likelihood import chunk_shape, score
from jaxformer.sharding import constrain, shardings
from tests.helpers.errors import raises
from tests.helpers.models import GEMMA, NAMED, SEED, every_model, random_params, random_tokens
from tests.helpers.runs import TINY
from train.__main__ import parse
from train.presets import PRESETS

LENGTH = 6
WIDE = dataclasses.replace(
    NAMED["modern"], n_layers=0, n_vocab=24, unembed_bias=True, logit_soft_cap=5.0
)
"""A vocabulary that devices can share."""


def losses(params, config: Config, window, compute: Compute | None = None, **options):
    return -score(params, config, window, compute=compute or Compute(), **options)


def by_optax(params, config: Config, window):
    logits = forward(params, config, window[:-1]).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, window[1:])


def with_gradient(function: Any, params, config: Config, window, **options):
    """Return each loss, and the gradient of their weighted sum."""
    weights = jnp.arange(1, len(window), dtype=params.W_E.dtype)

    def run(params):
        each = function(params, config, window, **options)
        return (weights * each.astype(weights.dtype)).sum(), each

    gradient, each = jax.jit(jax.grad(run, has_aux=True))(params)
    return each, gradient


def check_chunks(config: Config, sizes: tuple[int, ...]) -> None:
    params = random_params(config, dtype=jnp.float64)
    window = random_tokens(config, LENGTH + 1)
    expected, gradient = with_gradient(by_optax, params, config, window)
    for size in sizes:
        found, other = with_gradient(losses, params, config, window, vocab_chunk=size)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), other, gradient)


@pytest.mark.slow(unless=("seed",))
@every_model
def test_chunks_give_optax_s_losses_and_gradients(name: str, x64):
    """With a prime number of vocabulary entries; without layers, which do not matter here."""
    check_chunks(dataclasses.replace(NAMED[name], n_layers=0), (1, 7))


@pytest.mark.slow
def test_so_do_chunks_of_any_size(x64):
    check_chunks(dataclasses.replace(GEMMA, n_layers=0, unembed_bias=True), (2, 10, 11, 12))


@pytest.mark.slow
def test_every_chunk_has_entries_of_every_shard(x64):
    shapes = {1: (1, 1), 5: (4, 1), 10: (8, 1), 23: (8, 2), 40: (8, 3)}
    assert {size: chunk_shape(WIDE.n_vocab, size) for size in shapes} == shapes
    check_chunks(WIDE, (*shapes,))


@pytest.mark.slow
def test_a_chunk_of_the_whole_vocabulary_is_the_loss_without_chunks():
    params, window = random_params(GEMMA), random_tokens(GEMMA, LENGTH + 1)
    whole, gradient = with_gradient(losses, params, GEMMA, window)
    same, other = with_gradient(losses, params, GEMMA, window, vocab_chunk=GEMMA.n_vocab)
    jax.tree.map(np.testing.assert_array_equal, (same, other), (whole, gradient))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [("classic", "bfloat16"), ("gemma", "float16")])
def test_a_batch_has_the_losses_of_its_windows_in_narrow_dtypes_too(name: str, dtype: Any):
    config = NAMED[name]
    params, compute = random_params(config), Compute(dtype=dtype, remat="block")
    windows = jnp.stack([random_tokens(config, LENGTH + 1, seed) for seed in range(3)])
    run = partial(losses, params, config, compute=compute, vocab_chunk=4)
    together = jax.jit(jax.vmap(run))(windows)
    assert together.dtype == jnp.float32
    for each, window in zip(together, windows, strict=True):
        np.testing.assert_allclose(each, losses(params, config, window, compute), rtol=1e-5)


def shapes_of(config: Config, vocab_chunk: int | None, batch: int, context: int) -> set[tuple]:
    """Return the shapes of all arrays in the compiled gradient of a batch's loss."""

    def mean(params, windows):
        run = partial(losses, params, config, vocab_chunk=vocab_chunk)
        return jax.vmap(run)(windows).mean()

    windows = jnp.zeros((batch, context + 1), jnp.int32)
    compiled = jax.jit(jax.grad(mean)).lower(random_params(config), windows).compile()
    found = re.findall(r"\b(?:f|s|u|pred|bf)\d*\[([\d,]+)\]", str(compiled.as_text()))
    return {tuple(map(int, shape.split(","))) for shape in found}


@pytest.mark.slow
@pytest.mark.parametrize(("n_vocab", "tied"), [(97, True), (96, False)])
def test_no_program_in_chunks_has_all_logits(n_vocab: int, tied: bool):
    """Neither those of the forward pass, which nothing reads, nor derivatives: v is an axis only together with d."""
    config = dataclasses.replace(SEED, n_vocab=n_vocab, tied=tied, n_layers=1)

    def large(chunk: int | None) -> set[tuple]:
        many = 3 * 13 * n_vocab
        return {shape for shape in shapes_of(config, chunk, 3, 13) if np.prod(shape) >= many}

    assert large(None)
    assert not large(16)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_on_several_devices_gives_the_same_and_stays_there(tied: bool):
    config = dataclasses.replace(WIDE, n_vocab=48, d_model=10, tied=tied)
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    params, window = random_params(config), random_tokens(config, 14)
    rules = {"v": "tensor"}
    spread = jax.device_put(params, shardings(config, mesh, rules))
    run = partial(losses, vocab_chunk=16, edit=constrain(mesh, rules))
    expected, gradient = with_gradient(losses, params, config, window)
    found, other = with_gradient(run, spread, config, window)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), other, gradient)

    def total(params):
        return run(params, config, window).sum()

    text = str(jax.jit(jax.grad(total)).lower(spread).compile().as_text())
    assert re.search(r"f32\[13,4\]", text)  # [t, a quarter of the chunk]
    assert not re.search("all-gather|all-to-all|collective-permute", text)


def test_an_edit_of_the_logits_acts_on_every_chunk():
    params, window = random_params(SEED), random_tokens(SEED, LENGTH + 1)

    def halve(site, layer, value):
        return value / 2 if site == "logits" else value

    whole = losses(params, SEED, window, edit=halve)
    assert np.abs(whole - losses(params, SEED, window)).max() > 0.1
    chunks = losses(params, SEED, window, edit=halve, vocab_chunk=4)
    np.testing.assert_allclose(chunks, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("label", [-1, 11])
def test_a_target_outside_the_vocabulary_has_no_loss(label: int):
    window = random_tokens(SEED, LENGTH + 1).at[-1].set(label)
    params = random_params(SEED)
    each = jax.jit(lambda window: losses(params, SEED, window, vocab_chunk=4))(window)
    assert np.isnan(each).tolist() == [False] * (LENGTH - 1) + [True]
    with raises(ValueError, label, SEED.n_vocab):
        losses(params, SEED, window, vocab_chunk=4)


def test_a_recipe_names_the_chunk():
    assert parse(["seed", *TINY, "--vocab-chunk", "7"]).recipe.vocab_chunk == 7
    assert parse(["seed", *TINY]).recipe.vocab_chunk is None
    with raises(ValueError, "vocab_chunk=0"):
        dataclasses.replace(PRESETS["seed"](), vocab_chunk=0)
