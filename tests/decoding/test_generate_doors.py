"""Stop sequences, refused arguments and NaN in `generate`."""

import dataclasses
import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Characters, Sampling, abstract, generate, stream_tokens
from jaxformer.decoding.generation import lower
from jaxformer.interp.edit import ablate
from tests.helpers.errors import raises
from tests.helpers.models import MODERN, NAMED, SEED, random_params

KEY = jax.random.key(2)
PROMPT = [3, 1, 4]
BATCH = [PROMPT, [2, 7, 1, 8], [5]]
N = 12
PARAMS = random_params(SEED)
write = partial(generate, PARAMS, SEED, n_tokens=N, key=KEY, capture=("resid_post",))


def ended(text: list[int], stops: list[list[int]]) -> list[int]:
    """Cut the text after the first complete stop sequence."""
    for end in range(1, len(text) + 1):
        if any(end >= len(stop) and text[end - len(stop) : end] == stop for stop in stops):
            return text[:end]
    return text


def stops_of(text: list[int]) -> dict[str, tuple[Any, list[list[int]]]]:
    a, b, c = text[2:5]
    return {
        "token": (b, [[b]]),
        "sequence": ([a, b, c], [[a, b, c]]),
        "array": (np.array([[a, b], [c, a]]), [[a, b], [c, a]]),
        "several": ([[text[7]], [a, b, c], [c, c]], [[text[7]], [a, b, c], [c, c]]),
        "overlapping": ([[a, b, c, text[5]], [b, c]], [[a, b, c, text[5]], [b, c]]),
        "at the first token": (text[0], [[text[0]]]),
        "at the last token": (text[-4:], [text[-4:]]),
        "longer than the text": ([text + text], [text + text]),
    }


FREE = np.asarray(write(BATCH).tokens).tolist()


@pytest.mark.slow(unless=("several",))
@pytest.mark.parametrize("kind", stops_of(FREE[0]))
def test_a_text_ends_with_its_first_stop_sequence(kind: str):
    """A prompt that is done does not change the other prompts of its batch."""
    stop, plain = stops_of(FREE[0])[kind]
    found, free = write(BATCH, stop=stop), write(BATCH)
    for i, text in enumerate(FREE):
        kept = ended(text, plain)
        assert found.tokens[i].tolist() == kept + [-1] * (N - len(kept))
        assert int(found.lengths[i]) == len(kept)
        new, old = (
            (out.log_probs[i], *out.activations["resid_post"][i])  # each has an axis of positions
            for out in (found, free)
        )
        for stopped, full in zip(new, old, strict=True):
            np.testing.assert_allclose(
                stopped[: len(kept)], full[: len(kept)], rtol=1e-5, atol=1e-5
            )
            assert not np.asarray(stopped[len(kept) :]).any()


@pytest.mark.slow
def test_only_generated_tokens_end_a_text():
    """A stop sequence that begins in the prompt, and occurs nowhere after it, has no effect."""
    across = [PROMPT[-1], FREE[0][0]]
    assert ended(FREE[0], [across]) == FREE[0]
    assert write(BATCH, stop=across).tokens[0].tolist() == FREE[0]


REFUSED = {
    "empty prompt": ({"prompt": []}, ("prompt",)), "empty among others": ({"prompt": [[1], []]}, ("prompt",)),
    "text": ({"prompt": "To be"}, ("prompt", "tokenizer.encode")),
    "floats": ({"prompt": [0.5]}, ("prompt", (1,), "float64")),
    "three axes": ({"prompt": np.zeros((1, 2, 3), int)}, ("prompt", (1, 2, 3), "int64")),
    "mixed": ({"prompt": [[1], 2]}, ("prompt", (), "int64")), "outside": ({"prompt": [1, 11]}, (11, 1)),
    "negative": ({"prompt": [[1], [2, -1]]}, (-1, 1, 11)), "nothing": ({"n_tokens": 0}, ("n_tokens=0", 1)),
    "true": ({"n_tokens": True}, ("n_tokens=True", 1)), "half": ({"n_tokens": 1.5}, ("n_tokens=1.5",)),
    "top_k": ({"sampling": Sampling(top_k=12)}, ("top_k=12", 11)),
    "site": ({"capture": ("patern",)}, ("'patern'", "embed")),
    "one string": ({"capture": "z"}, ("capture='z'", "('z',)")),
    "hidden": ({"capture": ("rot_q",)}, ("'rot_q'", "embed")),
    "stop text": ({"stop": "end"}, ("stop='end'", "tokenizer.encode")),
    "stop texts": ({"stop": ["a", "b"]}, ("stop=['a', 'b']",)), "stop empty": ({"stop": []}, ("stop=[]",)),
    "stop half empty": ({"stop": [[1], []]}, ("stop=[[1], []]",)),
    "stop outside": ({"stop": [[1], [2, 11]]}, (11, 1)),
    "raw key": ({"key": np.zeros(2, np.uint32)}, ("key", "jax.random.key")),
    "old key": ({"key": jnp.zeros(2, jnp.uint32)}, ("key", "jax.random.key")),
    "seed": ({"key": 0}, ("key", "jax.random.key")), "keys for one": ({"key": jax.random.split(KEY, 1)}, ((1,), 1)),
    "too many keys": ({"prompt": [[1], [2]], "key": jax.random.split(KEY, 3)}, ((3,), 2)),
    "edit_from half": ({"edit_from": 1.5}, ("edit_from=1.5",)),
    "edit_from below": ({"edit_from": np.int64(-1)}, ("edit_from", -1, 0)),
    "edit_from many": ({"edit_from": [0, 1]}, ("edit_from=[0, 1]",)),
    "no stops": ({"stop": np.zeros((0, 2), int)}, ("stop",)), "edit_from": ({"edit_from": -1}, ("edit_from=-1", 0)),
    "another model": ({"config": MODERN}, ("blocks.attn_norm.w", (2, 8), None)),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_invalid_arguments_are_refused(kind: str):
    change, named = REFUSED[kind]
    unchecked = inspect.unwrap(generate)  # without the type checks that only tests have
    arguments = {
        "params": PARAMS,
        "config": SEED,
        "prompt": [1],
        "n_tokens": 3,
        "key": KEY,
    } | change
    with raises(ValueError, *named):
        unchecked(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seed", "windowed"])
def test_nan_parameters_are_reported_at_the_first_token_with_nan_logits(name: str):
    config = NAMED[name]
    params = random_params(config)
    broken = params._replace(W_E=jnp.full_like(params.W_E, jnp.nan))
    with raises(ValueError, "NaN", 0):
        generate(broken, config, PROMPT, 3, KEY)
    text = generate(params, config, PROMPT, N, KEY).tokens.tolist()
    new = next(token for token in text if token not in PROMPT)
    broken = params._replace(W_E=params.W_E.at[new].set(jnp.nan))
    with raises(ValueError, "NaN", text.index(new) + 1, 0):
        generate(broken, config, PROMPT, N, KEY)


@pytest.mark.slow
def test_numpy_numbers_are_taken():
    def half(site, layer, value):
        return value / 2 if site == "resid_post" else value

    plain = write(BATCH, edit_from=2, edit=half).tokens
    unchecked: Any = partial(inspect.unwrap(generate), edit=half, capture=("resid_post",))
    found = unchecked(PARAMS, SEED, BATCH, np.int64(N), KEY, edit_from=np.int32(2))
    np.testing.assert_array_equal(found.tokens, plain)
    each = write(BATCH, edit_from=[0, 2, 12], edit=half).tokens
    np.testing.assert_array_equal(each[1], plain[1])
    np.testing.assert_array_equal(each[2], FREE[2])


@pytest.mark.slow
def test_an_edit_of_the_padding_is_undone():
    """The prompt is padded at the end to a power of two."""

    def spoil(site, layer, value):
        padding = jnp.arange(len(value))[:, None] >= len(PROMPT)
        return jnp.where(padding, jnp.nan, value) if site == "resid_post" else value

    assert write(PROMPT, edit=spoil).tokens.tolist() == write(PROMPT).tokens.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 4])
def test_nan_from_an_edit_is_reported_at_the_first_edited_token(first: int):
    def spoil(site, layer, value):
        return value * jnp.nan if site == "resid_post" else value

    with raises(ValueError, "NaN", first, 0):
        write(BATCH, edit=spoil, edit_from=first)


def test_inside_traced_code_nan_ends_a_text():
    config = dataclasses.replace(SEED, n_layers=1)
    broken = jax.tree.map(lambda array: array * jnp.nan, random_params(config))
    found = jax.jit(lambda params: generate(params, config, [1, 2], 3, KEY))(broken)
    assert found.tokens.tolist() == [-1, -1, -1]
    assert np.isnan(found.log_probs[0])


def test_a_temperature_is_short_for_a_sampling():
    params, key = random_params(SEED), jax.random.key(2)
    run = partial(generate, params, SEED, [1, 2, 3], 5, key)
    short, whole = run(temperature=0.6), run(sampling=Sampling(temperature=0.6))
    np.testing.assert_array_equal(short.tokens, whole.tokens)
    np.testing.assert_array_equal(
        run(temperature=0).tokens, run(sampling=Sampling(temperature=0)).tokens
    )
    pieces = stream_tokens(params, SEED, [1, 2, 3], 5, key, temperature=0.6)
    np.testing.assert_array_equal(np.concatenate([*pieces]), short.tokens)


def test_texts_are_decoded_without_what_follows_a_stop():
    tokenizer, params, key = Characters("abcdefghijk"), random_params(SEED), jax.random.key(2)
    free = generate(params, SEED, [1, 2, 3], 5, key)
    assert free.texts(tokenizer) == tokenizer.decode(np.asarray(free.tokens))
    stop = int(free.tokens[1])
    out = generate(params, SEED, [[1, 2, 3], [1, 2, 3]], 5, key=jnp.stack([key] * 2), stop=stop)
    first = free.tokens.tolist().index(stop) + 1
    assert out.tokens[0, first:].tolist() == [-1] * (5 - first)
    expected = tokenizer.decode(np.asarray(free.tokens[:first]))
    assert out.texts(tokenizer) == [expected] * 2
    assert tokenizer.decode(np.asarray(out.tokens[0])) == expected


def test_texts_have_the_axes_of_the_tokens():
    tokenizer, params, key = Characters("abcdefghijk"), random_params(SEED), jax.random.key(2)
    run = partial(generate, params, SEED, [[1, 2], [3, 4]], 3)
    out = jax.vmap(run)(jax.random.split(key, 2))
    expected = [[tokenizer.decode(np.asarray(row)) for row in rows] for rows in out.tokens]
    assert out.texts(tokenizer) == expected


def test_an_edit_that_never_acts_is_refused_before_the_first_token_of_a_stream():
    params, key = random_params(SEED), jax.random.key(2)
    for n_tokens in (1, 5):
        with raises(ValueError, "unchanged"):
            next(stream_tokens(params, SEED, [1], n_tokens, key, edit=lambda site, _, value: value))


def test_a_temperature_is_one_real_number():
    for temperature in (jnp.array([0.5, 0.6]), jnp.array(1j)):
        with raises(ValueError, "temperature", "vmap"):
            generate(random_params(SEED), SEED, [1], 2, jax.random.key(0), temperature=temperature)


@pytest.mark.slow
def test_a_program_with_any_edit_can_be_lowered():
    params, key = abstract(SEED), jax.random.key(0)
    for edit in ({"z": jnp.zeros_like}, ablate("z", 1), lambda site, _, v: v * 2):
        assert "while" in lower(params, SEED, [1, 2], 2, key, edit=edit).as_text()
