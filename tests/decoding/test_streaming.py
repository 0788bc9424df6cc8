"""Streaming: the tokens do not depend on the pieces, and texts may be longer than the context."""

import dataclasses
import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Sampling, generate, stream_tokens
from tests.helpers.errors import raises
from tests.helpers.models import NAMED, SEED, random_params, random_tokens
from tests.helpers.texts import GREEDY, LONG, naive_text

KEY = jax.random.key(4)
PROMPT = [3, 1, 4, 1, 5]
FREE = Sampling(temperature=0.9, repetition_penalty=1.5)


def joined(pieces: Any) -> list[int]:
    pieces = list(pieces)
    assert all(len(piece) for piece in pieces)  # no piece is empty
    return np.concatenate(pieces).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modern", "windowed", "classic"])
def test_the_pieces_are_the_tokens_of_generate(name: str, x64):
    config = LONG[name]
    params = random_params(config, dtype=jnp.float64)
    full = generate(params, config, PROMPT, 20, KEY, sampling=FREE).tokens.tolist()
    for chunk in (1, 16):
        stream = stream_tokens(params, config, PROMPT, 20, KEY, sampling=FREE, chunk=chunk)
        pieces = [piece.tolist() for piece in stream]
        assert sum(pieces, []) == full  # noqa: RUF017
        assert [len(piece) for piece in pieces[:2]] == [1, min(chunk, 19)]
    short = stream_tokens(params, config, PROMPT, 3, KEY, sampling=FREE)
    assert [len(piece) for piece in short] == [1, 2]
    one = stream_tokens(params, config, PROMPT, 1, KEY, sampling=FREE)
    assert joined(one) == full[:1]


@pytest.mark.slow(unless=("8-13-3", "7-8-1", "1-13-3"))
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize(("context", "length"), [(1, 1), (1, 13), (7, 1), (7, 8), (8, 8), (8, 13)])
def test_a_full_context_keeps_its_latest_half(context: int, length: int, chunk: int, x64):
    """A text longer than the context is cut to its last context // 2 tokens, at least one."""
    params, prompt = random_params(SEED, dtype=jnp.float64), random_tokens(SEED, length).tolist()
    stream = partial(stream_tokens, params, SEED, prompt, 21, KEY, context=context, chunk=chunk)
    for sampling in (GREEDY, FREE):
        naive = naive_text(params, SEED, prompt, 21, KEY, sampling, context)
        assert joined(stream(sampling=sampling)) == naive


@pytest.mark.slow
@pytest.mark.parametrize("context", [None, 4])
def test_no_position_table_limits_a_stream(context: int | None, x64):
    config = NAMED["classic"]
    params = random_params(config, dtype=jnp.float64)
    limit = context or config.n_context
    naive = naive_text(params, config, PROMPT, 30, KEY, Sampling(), limit)
    assert joined(stream_tokens(params, config, PROMPT, 30, KEY, context=context)) == naive


@pytest.mark.slow(unless=("15", "9"))
@pytest.mark.parametrize("end", [0, 3, 4, 9, 15])
def test_a_stop_sequence_may_span_pieces_and_contexts(end: int):
    params = random_params(SEED)
    stream = partial(stream_tokens, params, SEED, PROMPT, 20, KEY, context=8, chunk=4)
    free = joined(stream())
    for width in (1, 2, 3):
        stop = free[max(end + 1 - width, 0) : end + 1]
        ends = [i for i in range(len(free)) if free[i + 1 - len(stop) : i + 1] == stop]
        first = next(i for i in ends if i + 1 >= len(stop))
        assert joined(stream(stop=[stop])) == free[: first + 1]


def test_a_penalty_applies_to_the_tokens_of_the_prompt_before_the_context():
    """The context has no room for the first tokens of this prompt."""
    params = random_params(SEED)._replace(W_U=jnp.zeros((8, 11)))

    def prefer_late_tokens(site, layer, value):
        return value + jnp.arange(11.0) if site == "logits" else value

    prompt = [10, 9, 8, 0, 0, 0, 0, 0]
    sampling = Sampling(temperature=0, repetition_penalty=100.0)
    options = {"sampling": sampling, "edit": prefer_late_tokens, "context": 4}
    stream = stream_tokens(params, SEED, prompt, 7, KEY, **options)
    assert joined(stream) == [7, 6, 5, 4, 3, 2, 1]


@pytest.mark.slow
def test_a_model_without_layers_streams_too():
    config = dataclasses.replace(SEED, n_layers=0)
    params = random_params(config)
    full = generate(params, config, PROMPT, 20, KEY).tokens.tolist()
    unchecked: Any = inspect.unwrap(stream_tokens)  # without the type checks that only tests have
    # Without layers, the context does not matter: only the last token does.
    assert joined(unchecked(params, config, PROMPT, np.int64(20), KEY, context=np.int64(4))) == full


def test_a_huge_context_allocates_no_more_than_the_text_needs():
    params = random_params(SEED)
    full = joined(stream_tokens(params, SEED, PROMPT, 20, KEY))
    assert joined(stream_tokens(params, SEED, PROMPT, 20, KEY, context=10**12)) == full


@pytest.mark.slow
def test_nan_is_reported_at_its_index_in_the_text():
    params = random_params(SEED)
    free = joined(stream_tokens(params, SEED, PROMPT, 30, KEY))
    token = next(token for token in free[8:] if token not in PROMPT)
    index = free.index(token) + 1  # the token is sampled, then read
    broken = params._replace(W_E=params.W_E.at[token].set(jnp.nan))
    for chunk in (1, 4, 16):
        with raises(ValueError, "NaN", index, 0):
            list(stream_tokens(broken, SEED, PROMPT, 30, KEY, chunk=chunk))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": []}, ("prompt",)), ({"prompt": [[1], [2]]}, ("stream_tokens", "generate")),
        ({"prompt": [11]}, (11, 0)), ({"n_tokens": 0}, ("n_tokens=0", 1)), ({"context": 0}, ("context=0", 1)),
        ({"context": "8"}, ("context='8'", 1)), ({"context": 10}, ("context=10", "n_context=9")),
        ({"chunk": 2.5}, ("chunk=2.5", 1)), ({"stop": "end"}, ("stop='end'", "tokenizer.encode")),
        ({"key": 0}, ("key", "jax.random.key")), ({"sampling": Sampling(top_k=12)}, ("top_k=12", 11)),
        ({"config": SEED}, ("W_U", (8, 11), None)),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused_at_the_call(change: dict, named: tuple):
    config = NAMED["classic"]
    unchecked = inspect.unwrap(stream_tokens)  # without the type checks that only tests have
    arguments = {"config": config, "prompt": [1], "n_tokens": 3, "key": KEY} | change
    with raises(ValueError, *named):
        unchecked(random_params(config), **arguments)
