"""What must hold of every model, whatever its weights."""

import dataclasses
import inspect
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Compute, abstract, attend, available_sites, empty_cache, forward, unstack
from jaxformer.config import Kernel
from jaxformer.sites import MODEL_SITES
from tests.helpers.errors import raises
from tests.helpers.models import (
    MODERN,
    NAMED,
    SEED,
    compiled_flops,
    every_model,
    random_params,
    random_tokens,
)

LENGTH = 7
exact = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)


def model(name: str, dtype=jnp.float32):
    config = NAMED[name]
    return random_params(config, dtype=dtype), config, random_tokens(config, LENGTH)


@pytest.mark.slow(unless=("seed", "gemma"))
@every_model
def test_later_tokens_cannot_change_earlier_logits(name: str, x64):
    """By gradient: of each position's logits with respect to what every position adds to the stream."""
    params, config, tokens = model(name, jnp.float64)

    def logits(noise):
        def add(site, layer, value):
            return value + noise if site == "embed" else value

        return forward(params, config, tokens, edit=add).logits.sum(axis=-1)

    influence = jax.jacobian(logits)(jnp.zeros((LENGTH, config.d_model)))  # [t s d]
    seen = np.abs(influence).max(axis=-1) > 0
    expected = np.tri(LENGTH, dtype=bool)
    if (
        config.max_lookback is not None
    ):  # each layer looks back a window further; one without sees all
        reach = config.n_layers * ((config.window or 0) - 1)
        expected &= ~np.tri(LENGTH, k=-reach - 1, dtype=bool)
    np.testing.assert_array_equal(seen, expected)


@every_model
def test_the_stream_is_the_embedding_plus_the_sum_of_its_updates(name: str, x64):
    params, config, tokens = model(name, jnp.float64)
    parts = [
        s for s in ("embed", "pos_embed", "attn_out", "mlp_out") if s in available_sites(config)
    ]
    found = forward(params, config, tokens, capture=(*parts, "resid_post")).activations
    total = sum(found[part] if part in MODEL_SITES else found[part].sum(axis=0) for part in parts)
    exact(found["resid_post"][-1], total)


@pytest.mark.slow(unless=("seed", "gemma"))
@every_model
def test_heads_add(name: str, x64):
    params, config, tokens = model(name, jnp.float64)
    scale = {"attn_post_scale"} & set(available_sites(config))
    found = forward(params, config, tokens, capture=("head_out", "attn_out", *scale)).activations
    total = found["head_out"].sum(axis=2)
    if params.blocks.attn.b_O is not None:
        total += params.blocks.attn.b_O[:, None]
    norm = params.blocks.attn_post_norm
    assert (norm is not None) == config.has_norm("after") == bool(scale)
    if norm is not None:
        w, square = norm.w[:, None], jnp.square(found["attn_post_scale"][..., 0])
        expected = jnp.square(total).mean(axis=-1) + config.norm_epsilon
        np.testing.assert_allclose(square, expected, rtol=1e-12)
        total = total / found["attn_post_scale"] * (1 + w if config.norm_plus_one else w)
    exact(found["attn_out"], total)


def test_without_positions_only_one_layer_is_blind_to_the_order_of_earlier_tokens(x64):
    differences = []
    for n_layers in (1, 2):
        config = dataclasses.replace(NAMED["seed"], n_layers=n_layers)
        params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, LENGTH)
        shuffled = jnp.concatenate([tokens[jnp.array([3, 0, 5, 1, 4, 2])], tokens[-1:]])
        one, other = (forward(params, config, order).logits[-1] for order in (tokens, shuffled))
        differences.append(np.abs(one - other).max())
    assert differences[0] <= 1e-12
    assert differences[1] > 1e-3


@every_model
def test_a_batch_is_each_of_its_sequences_alone(name: str, x64):
    params, config, _ = model(name, jnp.float64)
    batch = jnp.stack([random_tokens(config, LENGTH, seed) for seed in range(3)])
    together = jax.vmap(forward, in_axes=(None, None, 0))(params, config, batch).logits
    for logits, tokens in zip(together, batch, strict=True):
        exact(logits, forward(params, config, tokens).logits)


COMPUTES = {
    "unrolled": Compute(unroll=2),
    "blocked": Compute(kernel="blocked"),
    "fused": Compute(kernel="fused"),
    "remat_block": Compute(remat="block"),
    "remat_dots": Compute(remat="dots"),
    "remat_sites": Compute(remat="sites", saved=("q", "z", "pre")),
    "remat_sites_unrolled": Compute(remat="sites", saved=("pattern", "attn_out"), unroll=2),
    "remat_sites_blocked": Compute(remat="sites", saved=("z",), kernel="blocked"),
}


def loss_and_gradient(name: str, compute: Compute):
    params, config, tokens = model(name)

    @jax.jit
    def run(params):
        logits = forward(params, config, tokens, compute=compute).logits
        return jnp.square(logits).mean(), logits

    (_, logits), gradient = jax.value_and_grad(run, has_aux=True)(params)
    return logits, gradient


plain = lru_cache(lambda name: loss_and_gradient(name, Compute()))
MANY = ["classic", "modern", "parallel", "gemma", "olmo"]


@pytest.mark.slow(unless=("blocked-gemma", "fused-gemma", "remat_block-classic"))
@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("how", COMPUTES)
def test_every_compute_gives_the_same_logits_and_gradients(name: str, how: str):
    if (name, how) == ("gemma", "fused"):
        with raises(ValueError, 'kernel="fused"', "attention_soft_cap", 'kernel="einsum"'):
            loss_and_gradient(name, COMPUTES[how])
        return
    logits, gradient = plain(name)
    other, other_gradient = loss_and_gradient(name, COMPUTES[how])
    np.testing.assert_allclose(other, logits, rtol=1e-5, atol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, other_gradient, gradient)


@every_model
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_logits_are_float32_or_wider(name: str, dtype: str, x64):
    config, computing = NAMED[name], Compute(dtype=dtype)  # pyright: ignore[reportArgumentType]
    tokens = random_tokens(config, LENGTH)
    for params, compute in ((abstract(config, dtype), Compute()), (abstract(config), computing)):
        run = partial(forward, config=config, tokens=tokens, compute=compute)
        expected = "float64" if dtype == "float64" else "float32"
        assert jax.eval_shape(run, params).logits.dtype == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.005)])
def test_narrow_dtypes_agree_within_their_rounding(name: str, dtype: str, tolerance: float):
    params, config, tokens = model(name)
    wide, _ = plain(name)
    narrow = forward(params, config, tokens, compute=Compute(dtype=dtype)).logits  # pyright: ignore[reportArgumentType]
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=tolerance * float(jnp.abs(wide).max()))


def test_compiled_once_for_many_calls():
    params, config, tokens = model("modern")
    traces = []

    @jax.jit
    def step(params, token, cache):
        traces.append(token)
        return forward(params, config, token, cache).cache

    cache = empty_cache(config, LENGTH)
    for token in tokens:
        cache = step(params, token[None], cache)
    assert len(traces) == 1


def test_an_attention_only_model_has_no_mlp():
    assert abstract(NAMED["attention_only"]).blocks.mlp is None


@pytest.mark.parametrize("token", [-1, 11, 2**31 - 1])
def test_a_token_outside_the_vocabulary_is_refused_or_gives_nan(token: int):
    params, config, tokens = model("seed")
    tokens = tokens.at[3].set(token)
    with raises(ValueError, token, 3, 11):
        forward(params, config, tokens)
    logits = jax.jit(forward)(params, config, tokens).logits
    assert np.isnan(logits[3:]).all()


def test_a_wide_token_is_not_taken_modulo_what_an_index_holds(x64):
    params, config, _ = model("seed")
    tokens = jnp.array([2**32 + 3, 1, 4])
    assert jnp.isnan(jax.jit(forward)(params, config, tokens).logits).all()


def test_a_position_outside_the_table_is_refused_or_gives_nan():
    params, config, _ = model("classic")
    tokens = random_tokens(config, 10)
    with raises(ValueError, 10, "n_context=9"):
        forward(params, config, tokens)
    first = forward(params, config, tokens[:6], empty_cache(config, 12))
    later = forward(params, config, tokens[6:], first.cache).logits
    assert np.isnan(later[3:]).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "named"),
    [((2, 3), "int32", ((2, 3), "jax.vmap")), ((3,), "float32", ("tokens", "float32"))],
)
def test_tokens_of_another_kind_are_refused(shape: tuple, dtype: str, named: tuple):
    params, config, _ = model("seed")
    door = inspect.unwrap(forward)  # without the tests' own shape checks, as users have it
    with raises(ValueError, *named):
        door(params, config, np.zeros(shape, dtype))


def test_parameters_of_another_architecture_are_refused():
    params, config, tokens = model("seed")
    with raises(ValueError, "blocks.attn.W_Q", (2, 8, 4, 4), (2, 8, 2, 4)):
        forward(random_params(dataclasses.replace(config, n_heads=2)), config, tokens)
    with raises(ValueError, "blocks.attn.b_Q"):
        forward(random_params(dataclasses.replace(config, bias="qkv")), config, tokens)
    with raises(ValueError, "blocks.mlp.W_gate", None):
        forward(params, dataclasses.replace(config, gated=True), tokens)


def test_an_empty_sequence_has_no_logits():
    params, config, tokens = model("modern")
    for cache in (None, empty_cache(config, LENGTH)):
        assert forward(params, config, tokens[:0], cache).logits.shape == (0, 11)


@pytest.mark.slow(
    unless=("bfloat16-float32-blocked", "float32-bfloat16-blocked", "bfloat16-float32-einsum")
)
@pytest.mark.parametrize("kernel", ["einsum", "blocked", "fused"])
@pytest.mark.parametrize(("cached", "computed"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_cache_may_have_another_dtype(kernel, cached, computed, standard_promotion):
    """jax.nn's own attention mixes dtypes inside."""
    params, config, tokens = model("modern")
    cache = empty_cache(config, LENGTH, jnp.dtype(cached))
    compute = Compute(kernel=kernel, dtype=computed)
    logits = forward(params, config, tokens, cache, compute=compute).logits
    whole, _ = plain("modern")
    np.testing.assert_allclose(logits, whole, rtol=0, atol=0.05 * float(jnp.abs(whole).max()))


def test_the_buffers_of_a_cache_can_be_donated():
    params, config, tokens = model("modern")
    step = jax.jit(lambda cache: forward(params, config, tokens, cache).cache, donate_argnums=0)
    assert int(step(empty_cache(config, LENGTH)).length) == LENGTH


@pytest.mark.slow
def test_attention_in_blocks_computes_less_and_the_same(x64):
    """More than one block: with and without a cache, grouped queries, rotary positions."""
    config = dataclasses.replace(NAMED["modern"], n_layers=1)
    params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, 300)
    run = partial(forward, params, config)
    blocked = Compute(kernel="blocked")
    whole = jax.jit(lambda t: run(t).logits)
    parts = jax.jit(lambda t: run(t, compute=blocked).logits)
    np.testing.assert_allclose(parts(tokens), whole(tokens), rtol=0, atol=1e-11)
    cache = run(tokens[:20], empty_cache(config, 310, jnp.float64)).cache
    later = run(tokens[20:], cache, compute=blocked).logits
    np.testing.assert_allclose(later, whole(tokens)[20:], rtol=0, atol=1e-11)
    mixing = 2 * 2 * 300 * 300 * config.n_heads * config.d_head
    saved = compiled_flops(whole, tokens) - compiled_flops(parts, tokens)
    assert saved > 0.24 * mixing  # two blocks: a quarter of the square


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["L", "LG"])
def test_attention_in_blocks_is_the_same_with_windows_in_some_layers(pattern: str, x64):
    config = dataclasses.replace(NAMED["gemma"], window=40, window_pattern=pattern)
    params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, 300)
    whole, parts = (
        jax.jit(partial(forward, compute=Compute(kernel=kernel)))(params, config, tokens).logits
        for kernel in ("einsum", "blocked")
    )
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_reading_some_positions_leaves_out_the_logits_of_the_others(x64):
    params, config, tokens = model("modern", jnp.float64)
    whole = forward(params, config, tokens, capture=("final",))
    places = jnp.array([4, -1, 0])
    some = forward(params, config, tokens, capture=("final",), logits_at=places)
    exact(some.logits, whole.logits[places])
    assert some.activations["final"].shape == (3, config.d_model)
    for read, named in (([7], (7,)), ([-8], (-8, 7)), (2, ((),)), ([0.5], ((1,), "float64"))):
        with raises(ValueError, "logits_at", *named):
            inspect.unwrap(forward)(params, config, tokens, logits_at=read)
    traced = jax.jit(lambda read: forward(params, config, tokens, logits_at=read).logits)
    assert np.isnan(traced(jnp.array([7, -8]))).all()


@pytest.mark.parametrize("kernel", ["blocked", "fused"])
def test_every_kernel_attends_by_the_positions_that_it_is_given(kernel: Kernel):
    """Two texts side by side would see each other by position, not by index."""
    config = dataclasses.replace(MODERN, position="rotary", window=None)
    blocks: Any = unstack(random_params(config)).blocks
    state, positions = jnp.sin(jnp.arange(48.0).reshape(6, 8)), jnp.array([0, 1, 2, 0, 1, 2])
    found = attend(blocks[0].attn, config, state, positions, compute=Compute(kernel=kernel))
    np.testing.assert_allclose(found, attend(blocks[0].attn, config, state, positions), atol=1e-5)


def test_tokens_of_64_bits_are_checked_before_they_are_narrowed():
    params, run = random_params(SEED), inspect.unwrap(forward)
    with raises(ValueError, 2**32 + 3):
        run(params, SEED, np.array([2**32 + 3]))
    with raises(ValueError, 2**32 + 1):
        run(params, SEED, np.array([3, 1]), logits_at=np.array([2**32 + 1]))


def test_a_layer_alone_must_be_one_of_the_model_s_where_they_differ():
    config = dataclasses.replace(SEED, scale_scores_by_layer=True)
    blocks: Any = unstack(random_params(config)).blocks
    state = jnp.ones((3, config.d_model))
    assert np.isfinite(attend(blocks[0].attn, config, state, layer=0)).all()
    for wrong in (None, -1, config.n_layers):
        with raises(ValueError, f"layer={wrong}", f"n_layers={config.n_layers}"):
            attend(blocks[0].attn, config, state, layer=wrong)
