"""The laws of `generate`: it equals uncached forward passes, for any batch, length and Compute."""

import dataclasses
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Compute, Config, Sampling, available_sites, forward, generate, score
from jaxformer.decoding.generation import STATIC, _generate
from jaxformer.model.tap import _shared
from tests.helpers.errors import raises
from tests.helpers.models import MODERN, NAMED, SEED, every_model, random_params, random_tokens
from tests.helpers.texts import GREEDY, close, full_pass, model, naive_text, prompts, sliced

KEY = jax.random.key(11)
N = 6
FREE = Sampling(temperature=0.8, top_k=7, top_p=0.95, min_p=0.01, repetition_penalty=1.3)


@lru_cache
def batch(name: str):
    """Generate with every site captured. The caller has switched 64-bit JAX on."""
    params, config = model(name)
    return generate(
        params, config, prompts(config), N, KEY, sampling=FREE, capture=available_sites(config)
    )


def by_position(config: Config, site: str, value: Any, length: int) -> np.ndarray:
    """Return scores or pattern by position instead of by row of a rolling cache; other sites unchanged."""
    value, known = np.asarray(value), site in ("scores", "pattern")
    if not known or config.max_lookback is None:
        return value[..., :length] if known else value
    rows, missing = value.shape[-1], -np.inf if site == "scores" else 0.0
    placed = np.full((*value.shape[:-1], length), missing)
    for t in range(value.shape[-2]):
        own = length - value.shape[-2] + t
        for s in range(max(own + 1 - (config.window or 0), 0), own + 1):
            placed[..., t, s] = value[..., t, s % rows]
    return placed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seed", "classic", "gemma", "windowed"])
def test_each_prompt_of_a_batch_gives_the_same_as_alone(name: str, x64):
    params, config = model(name)
    together = batch(name)
    for i, prompt in enumerate(prompts(config)):
        key = jax.random.fold_in(KEY, i)
        alone = generate(
            params, config, prompt, N, key, sampling=FREE, capture=available_sites(config)
        )
        np.testing.assert_array_equal(together.tokens[i], alone.tokens)
        close(together.log_probs[i], alone.log_probs)
        for site, value in alone.activations.items():
            cut = partial(by_position, config, site, length=len(prompt) + N - 1)
            close(cut(together.activations[site][i]), cut(value), err_msg=site)


@pytest.mark.slow
@every_model
def test_activations_and_log_probs_are_those_of_a_full_forward_pass(name: str, x64):
    params, config = model(name)
    together = batch(name)
    assert set(together.activations) == set(available_sites(config))
    for i, prompt in enumerate(prompts(config)):
        text = jnp.array([*prompt, *together.tokens[i].tolist()], jnp.int32)
        if name == "modern":
            close(together.log_probs[i], score(params, config, text)[len(prompt) - 1 :])
        full = full_pass(params, config, text[:-1], available_sites(config))
        for site, value in sliced(full, slice(len(prompt) - 1, None)).items():
            found = by_position(config, site, together.activations[site][i], len(text) - 1)
            close(found, value, err_msg=site)


@pytest.mark.slow(unless=("greedy-gemma", "free-seed", "free-classic"))
@every_model
@pytest.mark.parametrize("sampling", [GREEDY, FREE], ids=["greedy", "free"])
def test_a_text_is_that_of_uncached_forward_passes(name: str, sampling: Sampling, x64):
    params, config = model(name)
    # With these sites, it is the program that the other tests have compiled.
    capture = available_sites(config) if sampling is FREE else ()
    found = generate(params, config, prompts(config), N, KEY, sampling=sampling, capture=capture)
    assert found.lengths.tolist() == [N] * 3
    for i, prompt in enumerate(prompts(config)):
        key = jax.random.fold_in(KEY, i)
        assert found.tokens[i].tolist() == naive_text(params, config, prompt, N, key, sampling)


@pytest.mark.slow
def test_a_layer_without_a_window_never_forgets(x64):
    """After more tokens than the other layers' window holds, the first token still changes the logits."""
    config = dataclasses.replace(NAMED["gemma"], window=2)
    params, prompt = random_params(config, dtype=jnp.float64), [[3, 1, 4, 1, 5], [2, 1, 4, 1, 5]]
    found = generate(params, config, prompt, 20, KEY, sampling=GREEDY)
    for i, text in enumerate(prompt):
        full = jnp.array([*text, *found.tokens[i].tolist()])
        assert found.tokens[i].tolist() == naive_text(params, config, text, 20, KEY, GREEDY)
        close(found.log_probs[i], score(params, config, full)[len(text) - 1 :])
    end = jnp.array([*prompt[0], *found.tokens[0].tolist()])
    logits = [forward(params, config, end.at[0].set(first)).logits[-1] for first in (3, 2)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), GREEDY], ids=["sampled", "greedy"])
def test_a_batch_is_single_prompts_under_vmap_and_jit(sampling: Sampling, x64):
    params, config = model("modern")
    array = jnp.stack([random_tokens(config, 5, seed) for seed in range(3)])
    keys = jax.random.split(KEY, 3)
    run = partial(generate, params, config, n_tokens=4, sampling=sampling)
    together = run(array, key=keys)
    mapped = jax.jit(jax.vmap(lambda prompt, key: run(prompt, key=key)))(array, keys)
    np.testing.assert_array_equal(together.tokens, mapped.tokens)
    close(together.log_probs, mapped.log_probs)
    one_key = run(array, key=KEY)
    folded = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(KEY, jnp.arange(3))
    np.testing.assert_array_equal(one_key.tokens, run(array, key=folded).tokens)


@pytest.mark.slow
def test_many_texts_of_one_prompt_by_vmap_over_keys():
    keys = jax.random.split(KEY, 4)
    run = partial(generate, random_params(SEED), SEED, [5], 12)
    texts = jax.vmap(lambda key: run(key).tokens)(keys)
    np.testing.assert_array_equal(texts, [run(key).tokens for key in keys])
    assert len(np.unique(texts, axis=0)) > 1


@pytest.mark.slow
def test_few_programs_serve_all_lengths():
    params = random_params(SEED)

    program: Any = _shared(_generate, STATIC, ())

    def programs(prompts, numbers) -> int:
        before = program._cache_size()
        for prompt, number in zip(prompts, numbers, strict=True):
            generate(params, SEED, prompt, number, KEY, temperature=0.1 * number)
        return program._cache_size() - before

    jax.clear_caches()
    assert programs([[5] * n for n in range(1, 17)], range(16, 0, -1)) == 1
    assert programs([[5] * n for n in (17, 25, 32)], (1, 9, 16)) == 1
    assert programs([[5] * n for n in (4, 16)], (17, 32)) == 1
    pairs = [[[5] * n for n in pair] for pair in ((2, 5), (16, 1), (3, 4))]
    assert programs(pairs, (3, 3, 3)) == 1


COMPUTES = {
    "bfloat16": (Compute(dtype="bfloat16"), 0.05),
    "int8": (Compute(cache="int8"), 0.05),
    "bfloat16_cache": (Compute(cache="bfloat16"), 0.05),
    "blocked": (Compute(kernel="blocked"), 1e-5),
    "fused": (Compute(kernel="fused"), 1e-5),
    "unrolled": (Compute(unroll=2), 1e-5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPUTES)
def test_every_compute_has_the_logits_of_a_full_forward_pass(name: str, standard_promotion):
    """The forward pass runs over the text that was generated."""
    config, (compute, tolerance) = NAMED["windowed"], COMPUTES[name]
    params, both = random_params(config), prompts(config)[1:3]
    found = generate(params, config, both, N, KEY, capture=("logits",), compute=compute)
    for i, prompt in enumerate(both):
        text = jnp.array([*prompt, *found.tokens[i].tolist()], jnp.int32)
        logits = forward(params, config, text[:-1]).logits[len(prompt) - 1 :]
        bound = tolerance * float(jnp.abs(logits).max())
        np.testing.assert_allclose(found.activations["logits"][i], logits, rtol=0, atol=bound)


@pytest.mark.slow(unless=("seed-0",))
@pytest.mark.parametrize("n_layers", [0, 1])
@pytest.mark.parametrize("name", ["seed", "windowed"])
def test_models_with_no_or_one_layer_generate(n_layers: int, name: str, x64):
    config = dataclasses.replace(NAMED[name], n_layers=n_layers)
    params = random_params(config, dtype=jnp.float64)
    found = generate(params, config, [3, 1], N, KEY, sampling=FREE, capture=("resid_post", "embed"))
    assert found.tokens.tolist() == naive_text(params, config, [3, 1], N, KEY, FREE)
    assert found.activations["resid_post"].shape == (n_layers, N, config.d_model)


@pytest.mark.slow
def test_a_batch_of_one_keeps_its_axis():
    params = random_params(MODERN)
    single = generate(params, MODERN, [3], 1, KEY, capture=("z", "embed"))
    assert (single.tokens.shape, single.lengths.shape) == ((1,), ())
    for one in ([[3]], np.array([[3]]), jnp.array([[3]])):
        key = jax.random.split(KEY, 1).at[0].set(KEY)
        batch_of_one = generate(params, MODERN, one, 1, key, capture=("z", "embed"))
        jax.tree.map(lambda b, s: np.testing.assert_array_equal(b[0], s), batch_of_one, single)


@pytest.mark.slow
def test_a_position_table_can_be_filled_but_not_overrun(x64):
    config = NAMED["classic"]
    params = random_params(config, dtype=jnp.float64)
    both = [random_tokens(config, n).tolist() for n in (4, 2)]
    found = generate(params, config, both, 6, KEY)  # the tenth token is never read
    for i, prompt in enumerate(both):
        key = jax.random.fold_in(KEY, i)
        assert found.tokens[i].tolist() == naive_text(params, config, prompt, 6, key, Sampling())
    with raises(ValueError, 4, "n_tokens=7", "n_context=9", 6):
        generate(params, config, both, 7, KEY)
    with raises(ValueError, 10, "n_tokens=1", "n_context=9"):
        generate(params, config, [0] * 10, 1, KEY)


@pytest.mark.slow
def test_a_prompt_of_many_windows_is_read_in_pieces(x64):
    params, config = model("windowed")
    long = [random_tokens(config, n, seed=n).tolist() for n in (40, 3, 17, 33)]
    found = generate(params, config, long, 8, KEY, sampling=FREE)
    for i, prompt in enumerate(long):
        key = jax.random.fold_in(KEY, i)
        assert found.tokens[i].tolist() == naive_text(params, config, prompt, 8, key, FREE)
