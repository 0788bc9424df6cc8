"""What is kept of the tokens seen: as good as reading them anew, in whatever form it is kept."""

import dataclasses
import re
from functools import partial
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays

from jaxformer import (
    Cache,
    Compute,
    Config,
    Params,
    abstract,
    available_sites,
    empty_cache,
    forward,
    unstack,
)
from jaxformer.config import Kernel
from jaxformer.decoding.generation import lower
from jaxformer.decoding.stacking import layers
from jaxformer.model.cache import Quantized, capacity, quantized
from jaxformer.model.cache import read as read_rows
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.models import (
    MODERN,
    NAMED,
    SEED,
    WINDOWED,
    configs,
    every_model,
    random_params,
    random_tokens,
    three_models,
)

LENGTH = 6
step = jax.jit(forward)
both_forms = pytest.mark.parametrize("listed", [False, True], ids=["stacked", "unstacked"])


def begin(
    params: Params, config: Config, rows: int, dtype: Any, listed: bool
) -> tuple[Params, Cache]:
    """The parameters and an empty cache: layers stacked, or in a list."""
    cache = empty_cache(config, rows, dtype)
    if not listed:
        return params, cache
    return unstack(params), Cache(layers(cache.k), layers(cache.v), cache.length)


def read(params: Any, config: Config, tokens: jax.Array, cache: Cache, pieces: tuple[int, ...]):
    """The logits of all tokens, read in pieces, and the last cache."""
    logits, start = [], 0
    for piece in pieces:
        out = step(params, config, tokens[start : start + piece], cache)
        cache, start = out.cache, start + piece
        logits.append(out.logits)
    assert int(cache.length) == start == len(tokens)
    return np.concatenate(logits), cache


def close(found: Any, expected: Any, dtype: str) -> None:
    expected = np.asarray(expected)
    bound = {"float64": 1e-10, "float32": 1e-5}[dtype] * max(np.abs(expected).max(), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def check_cached(config: Config, dtype: str, pieces: tuple[int, ...], listed: bool) -> None:
    """Reading in pieces gives the logits of one uncached pass."""
    params, tokens = random_params(config, dtype=dtype), random_tokens(config, LENGTH)
    form, empty = begin(params, config, LENGTH, dtype, listed)
    found, _ = read(form, config, tokens, empty, pieces)
    close(found, step(params, config, tokens).logits, dtype)


@pytest.mark.slow(unless=("stacked-uneven-gemma", "stacked-one by one-seed"))
@every_model
@pytest.mark.parametrize(
    ("dtype", "pieces"),
    [("float32", (1,) * 6), ("float64", (1, 3, 2))],
    ids=["one by one", "uneven"],
)
@both_forms
def test_cached_equals_uncached(name: str, dtype: str, pieces: tuple, listed: bool, x64):
    check_cached(NAMED[name], dtype, pieces, listed)


@pytest.mark.slow
@examples(6)
@hypothesis.given(configs(), st.sampled_from([(2, 4), (3, 1, 2)]), st.booleans())
def test_cached_equals_uncached_whatever_the_choices(
    x64, config: Config, pieces: tuple[int, ...], listed: bool
):
    check_cached(config, "float64", pieces, listed)


@pytest.mark.slow
@every_model
def test_unstacked_equals_stacked(name: str, x64):
    """Logits, all activations, and gradients."""
    config = NAMED[name]
    params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, LENGTH)

    @jax.jit
    def run(params):
        def loss(params):
            out = forward(params, config, tokens, capture=available_sites(config))
            return jnp.square(out.logits).mean(), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, one), gradient = run(params)
    (_, other), listed = run(unstack(params))
    assert set(one.activations) == set(other.activations)
    jax.tree.map(lambda a, b: close(a[jnp.isfinite(a)], b[jnp.isfinite(a)], "float64"), one, other)
    jax.tree.map(lambda a, b: close(a, b, "float64"), unstack(gradient), listed)


def test_a_model_of_no_layers_unstacks_to_itself():
    config = dataclasses.replace(SEED, n_layers=0)
    params = unstack(random_params(config))
    out = forward(params, config, random_tokens(config, 3), capture=("z",))
    assert out.activations["z"].shape == (0, 3, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 3, 4])
@pytest.mark.parametrize("piece", [1, 2, 5])
@both_forms
def test_a_window_s_rows_go_round_without_end(window: int, piece: int, listed: bool, x64):
    config = dataclasses.replace(WINDOWED, window=window)
    params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, 40)
    form, cache = begin(params, config, window + piece - 1, jnp.float64, listed)
    found, cache = read(form, config, tokens, cache, (piece,) * (40 // piece))
    assert capacity(cache) == window + piece - 1
    close(found, step(params, config, tokens).logits, "float64")


@pytest.mark.slow(unless=("stacked-blocked-LLG",))
@pytest.mark.parametrize("pattern", ["GL", "LLG"])
@pytest.mark.parametrize("kernel", ["einsum", "blocked", "fused"])
@both_forms
def test_where_one_layer_has_no_window_no_row_is_written_over(
    pattern: str, kernel: Kernel, listed: bool
):
    config = dataclasses.replace(WINDOWED, n_layers=3, window_pattern=pattern)
    params, tokens = random_params(config), random_tokens(config, 12)
    form, cache = begin(params, config, 12, "float32", listed)
    whole = step(params, config, tokens).logits
    logits, run = [], jax.jit(partial(forward, compute=Compute(kernel=kernel)))
    for start in range(0, 12, 2):
        out = run(form, config, tokens[start : start + 2], cache)
        cache = out.cache
        logits.append(out.logits)
    close(np.concatenate(logits), whole, "float32")
    assert np.isnan(run(form, config, tokens[:1], cache).logits).all()  # full, and not begun anew
    other = tokens.at[0].set((tokens[0] + 1) % config.n_vocab)
    assert np.abs(step(params, config, other).logits[-1] - whole[-1]).max() > 1e-4


@pytest.mark.parametrize(("name", "first", "more"), [("modern", 4, 1), ("windowed", 3, 3)])
def test_more_tokens_than_rows_give_nan_or_an_error(name: str, first: int, more: int):
    """With a window, three tokens at a time need window + 2 rows; with one fewer, no row is used twice."""
    params, config, tokens = random_params(NAMED[name]), NAMED[name], random_tokens(NAMED[name], 6)
    out = step(params, config, tokens[:first], empty_cache(config, 4))
    assert np.isfinite(out.logits).all()
    full = step(params, config, tokens[first : first + more], out.cache)
    assert np.isnan(full.logits).all()
    assert np.isnan(
        step(params, config, tokens[:1], full.cache).logits
    ).all()  # nor is it forgotten
    with raises(ValueError, 5, 4):
        forward(params, config, tokens[:5], empty_cache(config, 4))


vectors = arrays.arrays(
    np.float32, (3, 5), elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)
)


@pytest.mark.slow
@hypothesis.given(vectors)
def test_rounding_to_8_bits_errs_by_a_254th_of_the_largest(vectors: np.ndarray):
    hypothesis.assume(not ((vectors != 0) & (np.abs(vectors) < 1e-30)).any())  # scales of no float
    stored = quantized(jnp.asarray(vectors)[None])
    assert stored.values.dtype == jnp.int8
    assert int(jnp.abs(stored.values.astype(jnp.int32)).max()) <= 127
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    error = np.abs(np.asarray(read_rows(stored, jnp.float32)[0], np.float64) - vectors)
    assert (error <= largest / 254 * (1 + 1e-5)).all()
    assert not error[(largest == 0)[:, 0]].any()  # a zero vector stays one


@pytest.mark.slow(unless=("stacked-int8-float32-seed",))
@three_models
@pytest.mark.parametrize(
    ("kept", "dtype"), [("int8", "float32"), ("bfloat16", "float32"), ("int8", "float64")]
)
@both_forms
def test_a_rounded_cache_gives_nearly_the_same_logits(
    name: str, kept: str, dtype: str, listed: bool
):
    config = NAMED[name]
    with jax.enable_x64(dtype == "float64"):
        params, tokens = random_params(config, dtype=dtype), random_tokens(config, LENGTH)
        form, empty = begin(params, config, LENGTH, kept, listed)
        found, cache = read(form, config, tokens, empty, (1, 3, 2))
        whole = np.asarray(step(params, config, tokens).logits)
    np.testing.assert_allclose(found, whole, rtol=0, atol=0.05 * np.abs(whole).max())
    assert not np.array_equal(found, whole)
    assert jax.tree.leaves(cache.k)[0].dtype == kept


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int32", "int64"])
@both_forms
def test_a_batch_s_lengths_may_be_of_any_integer(listed: bool, dtype: str, x64):
    """Written eagerly: there a loop over the batch counts in int64."""
    params, empty = begin(random_params(MODERN, 0, jnp.float64), MODERN, 4, jnp.float64, listed)
    axis = 0 if listed else 1
    k, v = jax.tree.map(lambda array: jnp.stack([array] * 3, axis), empty[:2])
    cache = Cache(k, v, jnp.asarray([0, 2, 1], dtype))
    axes: Any = Cache(axis, axis, 0)  # pyright: ignore[reportArgumentType]
    run = jax.vmap(lambda c: forward(params, MODERN, jnp.array([3]), c).logits, in_axes=(axes,))
    assert np.isfinite(run(cache)).all()


def test_only_the_key_and_value_heads_are_kept():
    config = dataclasses.replace(MODERN, n_kv_heads=1)
    cache = empty_cache(config, 5)
    assert cache.k.shape == cache.v.shape == (2, 1, 5, 4)
    rounded: Any = empty_cache(config, 5, "int8").k
    assert isinstance(rounded, Quantized)
    assert (rounded.values.shape, rounded.scale.shape) == ((2, 1, 5, 4), (2, 1, 5, 1))


@pytest.mark.parametrize(
    ("rows", "dtype", "named"),
    [(0, "float32", ("capacity=0", 1)), (4, "int32", ("int32", "int8")), (4, "bool", ("bool", "int8"))],
)  # fmt: skip
def test_a_cache_that_cannot_be_is_refused(rows: int, dtype: str, named: tuple):
    with raises(ValueError, *named):
        empty_cache(SEED, rows, dtype)


@pytest.mark.parametrize(
    ("other", "held"), [(MODERN, (2, 2, 5, 4)), (dataclasses.replace(SEED, n_layers=3), (3, 4, 5, 4))]
)  # fmt: skip
def test_a_cache_of_another_model_is_refused(other: Config, held: tuple):
    with raises(ValueError, "k", held, (2, 4, 5, 4), "empty_cache"):
        forward(random_params(SEED), SEED, random_tokens(SEED, 2), empty_cache(other, 5))


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(2, 2, 2), (1, 3, 2)], ids=["equal", "ragged"])
def test_derivatives_pass_through_the_cache_of_a_batch(lengths: tuple[int, ...], x64):
    """By reverse and by forward mode: those of the same texts read without a cache."""
    params = random_params(MODERN, dtype=jnp.float64)
    batch = jnp.stack([random_tokens(MODERN, 6, seed) for seed in range(3)])
    equal = len(set(lengths)) == 1
    axes: Any = Cache(0, 0, None if equal else 0)  # pyright: ignore[reportArgumentType]

    def cached(params: Params) -> jax.Array:
        empty = empty_cache(MODERN, 8, jnp.float64)
        first: Any = jax.vmap(lambda t: forward(params, MODERN, t[:3], empty).cache)(batch)
        # What lies behind its length is written over.
        cache = first._replace(length=jnp.asarray(lengths[0] if equal else lengths, jnp.int32))
        rest = jax.vmap(lambda t, c: forward(params, MODERN, t[3:], c).logits, in_axes=(0, axes))
        return rest(batch, cache)

    def uncached(params: Params) -> jax.Array:
        texts = [jnp.concatenate([t[:n], t[3:]]) for t, n in zip(batch, lengths, strict=True)]
        return jnp.stack([forward(params, MODERN, text).logits[-3:] for text in texts])

    change = random_params(MODERN, seed=1, dtype=jnp.float64)
    found, expected = (jax.jvp(f, (params,), (change,)) for f in (cached, uncached))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8), found, expected)
    weights = jnp.cos(jnp.arange(found[0].size, dtype=jnp.float64)).reshape(found[0].shape)
    backward = [jax.grad(lambda p, f=f: (f(p) * weights).sum())(params) for f in (cached, uncached)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8), *backward)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [[[3, 1], [4, 1]], [[3, 1], [4]]], ids=["equal", "ragged"])
def test_decoding_writes_into_the_cache_and_never_copies_it(prompts: list[list[int]]):
    """In the compiled loop, which holds a layer's keys as [b k s h]."""
    config = dataclasses.replace(MODERN, d_head=6)
    shapes = jax.eval_shape(unstack, abstract(config))
    text = str(lower(shapes, config, prompts, 16, jax.random.key(0)).compile().as_text())
    shape = f"f32[2,{config.n_kv_heads},32,6]"
    bodies = re.findall(r"body=%([\w.\-]+)", text)
    found = [re.search(rf"\n%{re.escape(body)} \(.*?\n}}\n", text, re.DOTALL) for body in bodies]
    lines = [line for body in found if body for line in body.group().splitlines()]
    assert any(shape in line for line in lines)
    assert not [line for line in lines if re.search(rf"= {re.escape(shape)}\S* copy\(", line)]
