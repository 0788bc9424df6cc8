"""Batches: the same from a file and from memory, at any size; and validation of bounded size."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import Bytes
from tests.helpers.errors import raises
from train.data.batches import (
    cover,
    draw_starts,
    draw_windows,
    held_out_starts,
    host_starts,
    shuffled_starts,
)
from train.data.dataset import in_batches
from train.data.tokenfile import write_tokens

KEY = jax.random.key(0)


def test_a_file_and_a_corpus_in_memory_give_the_same_batches(tmp_path: Path):
    text = "The same text, in memory and in a file. " * 30
    tokens = write_tokens(tmp_path / "corpus.tokens", Bytes(), [text]).tokens
    starts = host_starts(KEY, np.arange(20, 25), len(tokens) - 9, 6)
    windows = draw_windows(tokens, starts, 9)
    assert windows.shape == (5, 6, 10)
    in_memory = Bytes().encode(text)
    for i, step in enumerate(range(20, 25)):
        alone = np.asarray(draw_starts(KEY, jnp.asarray(step), len(in_memory) - 9, 6))
        np.testing.assert_array_equal(windows[i], draw_windows(in_memory, alone, 9))


def test_windows_begin_at_every_place_and_never_past_the_end():
    drawn = draw_windows(np.arange(7), host_starts(KEY, np.arange(5), 7 - 4, 64), 4)
    assert set(drawn[..., 0].ravel().tolist()) == {0, 1, 2}
    assert (np.diff(drawn, axis=-1) == 1).all()


@given(length=st.integers(2, 60), batch=st.integers(1, 5), context=st.integers(1, 9))
def test_validation_covers_each_target_once(length: int, batch: int, context: int):
    tokens = np.arange(length)
    windows, real = cover(tokens, batch, context)
    targets = windows[:, :, 1:][real]
    np.testing.assert_array_equal(np.sort(targets), np.arange(1, length))
    np.testing.assert_array_equal(windows[:, :, :-1][real], targets - 1)


@given(rows=st.integers(1, 20), batch=st.integers(1, 7))
def test_padding_of_the_last_batch_is_not_counted(rows: int, batch: int):
    windows = np.arange(rows * 4).reshape(rows, 4)
    filled = in_batches(windows, batch)
    assert filled.windows.shape == (-(-rows // batch), batch, 4)
    counted = filled.counted.all(axis=-1)
    assert (filled.counted.any(axis=-1) == counted).all()
    np.testing.assert_array_equal(filled.windows[counted], windows)


@pytest.mark.parametrize("last", [2**31 - 1, 2**31, 10**11])
def test_starts_are_a_function_of_key_and_step_and_reach_every_part(last: int):
    starts = host_starts(KEY, np.arange(64), last, 64)
    assert starts.dtype == np.int64
    np.testing.assert_array_equal(starts[7:9], host_starts(KEY, np.arange(7, 9), last, 64))
    assert len(np.unique(starts)) == 64 * 64
    tenths = np.bincount((starts.ravel() // (last / 10)).astype(int), minlength=10)
    expected = 64 * 64 / 10
    assert len(tenths) == 10
    assert (np.square(tenths - expected) / expected).sum() < 27.9  # 1 in 1000 for 9 degrees


@pytest.mark.parametrize("starts", [[-1], [3, 96]])
def test_windows_that_leave_the_corpus_are_refused(starts: list[int]):
    with raises(ValueError, 5, 100, 95, *starts):
        draw_windows(np.arange(100), np.array(starts), 4)


@given(n=st.integers(50, 10**12), context=st.integers(1, 3000), most=st.integers(1, 2**20))
def test_held_out_windows_are_disjoint_and_in_the_last_tenth(n: int, context: int, most: int):
    held = n - n * 9 // 10
    if held <= context:
        with raises(ValueError, n, context, context + 1, "--context"):
            held_out_starts(n, context, most)
        return
    starts = held_out_starts(n, context, most)
    assert starts[0] == n * 9 // 10
    assert starts[-1] + context < n
    gaps = np.diff(starts)
    assert (gaps >= context).all()
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= context  # evenly
    assert len(starts) * context <= max(most, context)
    whole = (held - 1) // context
    assert len(starts) == min(whole, max(1, most // context))


def test_held_out_windows_are_those_of_cover_if_they_fit():
    tokens = np.arange(1000)
    windows = draw_windows(tokens, held_out_starts(1000, 9), 9)
    assert len(windows) == 11
    np.testing.assert_array_equal(windows, cover(tokens[900:], 1, 9)[0][:11, 0])


@given(tokens=st.integers(21, 90), batch=st.integers(1, 4), context=st.integers(1, 10))
def test_a_shuffled_epoch_takes_each_window_once(tokens: int, batch: int, context: int):
    places = (tokens - 1) // context - 1
    steps = np.arange(-(-2 * places // batch))
    starts = shuffled_starts(KEY, steps, tokens, batch, context)
    assert starts.min() >= 0
    assert starts.max() + context < tokens
    epochs = starts.ravel()[: 2 * places].reshape(2, places)
    for epoch in np.sort(epochs):
        np.testing.assert_array_equal(np.diff(epoch), context)
    alone = [shuffled_starts(KEY, steps[i : i + 1], tokens, batch, context)[0] for i in steps]
    np.testing.assert_array_equal(alone, starts)


def test_too_few_tokens_for_an_epoch_are_refused():
    with raises(ValueError, 20, 11, 21, "--order"):
        shuffled_starts(KEY, np.arange(1), 20, 1, 10)
