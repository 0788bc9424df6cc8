"""The parts of training: corpora, batches, yardsticks, optimizer, step."""

import math
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import Compute, Config, Params, forward, init
from tests.models import CLASSIC, MODERN, NAMED, SEED, random_params
from train import corpora
from train.batches import cover, draw_batch
from train.ngrams import ngram_losses
from train.optimizer import decays, make_optimizer, schedule
from train.step import TrainState, many_steps, mean_loss, summed_losses, train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")
KEY = jax.random.key(0)


def test_a_batch_is_a_function_of_key_and_step_alone():
    tokens = jnp.arange(1000)
    draw = lambda step: draw_batch(KEY, jnp.asarray(step), tokens, batch=8, context=5)  # noqa: E731
    np.testing.assert_array_equal(draw(31), draw(31))
    assert not np.array_equal(draw(31), draw(32))
    assert (np.diff(draw(31), axis=1) == 1).all()


def test_windows_begin_at_every_place_and_never_past_the_end():
    tokens = jnp.arange(7)
    drawn = np.concatenate([draw_batch(KEY, jnp.asarray(i), tokens, 64, 4)[:, 0] for i in range(5)])
    assert set(drawn.tolist()) == {0, 1, 2}


@given(length=st.integers(2, 60), batch=st.integers(1, 5), context=st.integers(1, 9))
def test_validation_covers_each_target_once(length: int, batch: int, context: int):
    tokens = np.arange(length)
    windows, real = cover(tokens, batch, context)
    targets = windows[:, :, 1:][real]
    np.testing.assert_array_equal(np.sort(targets), np.arange(1, length))
    np.testing.assert_array_equal(windows[:, :, :-1][real], targets - 1)


@pytest.mark.parametrize("name", ["seed", "classic"])
def test_the_validation_loss_is_the_mean_over_all_targets(name: str):
    config = NAMED[name]
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, config.n_vocab, 50).astype(np.int32)
    windows, real = cover(tokens, 3, 8)
    total = float(
        np.sum(summed_losses(config, Compute())(params, jnp.asarray(windows), jnp.asarray(real)))
    )
    by_hand = 0.0
    for start in range(0, 49, 8):
        window = tokens[start : start + 9]
        logits = forward(params, config, jnp.asarray(window[:-1])).logits
        by_hand -= float(
            jnp.take_along_axis(jax.nn.log_softmax(logits), window[1:, None], axis=1).sum()
        )
    assert total == pytest.approx(by_hand, rel=1e-5)


def test_ngram_losses_are_those_of_counting_by_hand():
    rng = np.random.default_rng(0)
    train, held_out = rng.integers(0, 4, 300), rng.integers(0, 5, 80)  # token 4 was never seen

    def p(history: tuple[int, ...], token: int) -> float:
        order = len(history)
        lower = p(history[1:], token) if order else 1 / 5
        follow = [
            int(train[i + order])
            for i in range(300 - order)
            if tuple(train[i : i + order]) == history
        ]
        kinds = len(set(follow))
        return (Counter(follow)[token] + kinds * lower) / (len(follow) + kinds) if follow else lower

    losses = ngram_losses(train, held_out, n_vocab=5)
    for order, name in enumerate(("unigram", "bigram", "trigram")):
        probabilities = [
            p(tuple(int(t) for t in held_out[max(0, i - order) : i]), int(held_out[i]))
            for i in range(1, 80)
        ]
        assert losses[name] == pytest.approx(-np.mean(np.log(probabilities)), rel=1e-12)


def test_ngram_probabilities_sum_to_one():
    train = np.array([0, 1, 2, 0, 1, 0, 2, 2, 1, 0])
    total = sum(
        math.exp(-ngram_losses(train, np.array([0, 1, t]), 3)["trigram"] * 2) for t in range(3)
    )
    first = math.exp(-ngram_losses(train, np.array([0, 1]), 3)["trigram"])
    assert total == pytest.approx(first, rel=1e-12)


def test_weight_decay_is_for_matrices():
    assert decays(CLASSIC).W_E is False
    assert decays(CLASSIC).W_pos is False
    assert decays(CLASSIC).final_norm.w is False
    assert decays(CLASSIC).blocks.attn.b_Q is False
    assert decays(CLASSIC).blocks.attn.W_O is True
    assert decays(MODERN).W_U is True


def test_the_schedule_warms_up_and_ends_on_its_last_share():
    rate = schedule(AdamW(learning_rate=1.0, warmup=10, last_share=0.1), 100)
    rates = np.array([rate(step) for step in range(101)])
    assert rates[0] == 0
    assert rates.argmax() == 10
    assert rates[10] == pytest.approx(1.0)
    assert (np.diff(rates[10:]) <= 0).all()
    assert rates[100] == pytest.approx(0.1)
    schedule(AdamW(warmup=100), 1)  # a run shorter than its warm-up has a schedule too


@lru_cache
def fresh_params(config: Config) -> Params:
    return init(config, KEY)


def start(config, steps=8, **settings):
    optimizer = make_optimizer(config, AdamW(warmup=2, **settings), steps)
    params: Any = jax.tree.map(jnp.copy, fresh_params(config))  # a step takes the buffers over
    return optimizer, TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def test_many_steps_in_one_call_are_the_single_steps_and_compile_once():
    tokens = jax.random.randint(KEY, (200,), 0, 11)
    optimizer, state = start(SEED)
    options = {"batch": 4, "context": 6, "compute": Compute()}
    singles, losses = state, []
    one = jax.jit(lambda state, windows: train_step(state, SEED, windows, optimizer, Compute()))
    for i in range(6):
        singles, metrics = one(singles, draw_batch(KEY, jnp.asarray(i), tokens, 4, 6))
        losses.append(float(metrics["loss"]))
    together = many_steps(SEED, optimizer, **options, length=3)
    state, first = together(state, tokens, KEY)
    state, second = together(state, tokens, KEY)
    assert getattr(together, "_cache_size")() == 1  # noqa: B009  not in Callable
    assert int(state.step) == 6
    np.testing.assert_allclose([*first["loss"], *second["loss"]], losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        state.params,
        singles.params,
    )


def test_the_state_s_buffers_are_taken_over():
    optimizer, state = start(SEED)
    many_steps(SEED, optimizer, batch=2, context=4, compute=Compute(), length=1)(
        state, jnp.arange(11), KEY
    )
    assert state.params.W_E.is_deleted()


def test_the_update_is_optax_s_adamw_after_clipping():
    optimizer, state = start(SEED, clip=0.1)
    windows = jax.random.randint(KEY, (3, 7), 0, 11)
    after, metrics = jax.jit(lambda s: train_step(s, SEED, windows, optimizer, Compute()))(state)
    gradient = jax.jit(jax.grad(mean_loss))(state.params, SEED, windows, Compute())
    assert float(metrics["gradient_norm"]) == pytest.approx(
        float(optax.tree.norm(gradient)), rel=1e-6
    )
    assert float(metrics["gradient_norm"]) > 0.1
    params: Any = state.params
    changes, _ = optimizer.update(gradient, state.optimizer, params)
    expected = optax.apply_updates(params, changes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.params, expected)


@pytest.mark.parametrize("name", NAMED)
def test_every_model_learns_to_repeat(name: str):
    """A cycle of period 3 is learned to below a tenth of the uniform loss."""
    config = NAMED[name]
    optimizer, state = start(config, steps=150, learning_rate=1e-2)
    tokens = jnp.asarray(np.arange(300) % 3, jnp.int32)
    steps = many_steps(config, optimizer, batch=4, context=6, compute=Compute(), length=150)
    _, history = steps(state, tokens, KEY)
    assert float(history["loss"][-1]) < 0.1 * math.log(config.n_vocab)


def test_python_docs_is_english_prose_and_splits_by_position():
    corpus = corpora.load_corpus("python-docs", "characters", 64)
    text = corpora.python_docs()
    assert len(text) > 300_000
    assert (
        corpus.tokenizer.decode(corpus.train) + corpus.tokenizer.decode(corpus.validation) == text
    )
    assert len(corpus.train) == len(text) * 9 // 10
    assert corpus.characters_per_token == 1


def test_paths_are_files_folders_and_globs(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("bb")
    (tmp_path / "a.txt").write_text("aé")
    (tmp_path / "sub" / "c.md").write_text("cc")
    (tmp_path / ".hidden").write_text("no")
    assert corpora.read_path(str(tmp_path / "a.txt")) == "aé"
    assert corpora.read_path(str(tmp_path)) == "aé\nbb\ncc"
    assert corpora.read_path(str(tmp_path / "*.txt")) == "aé\nbb"


def test_bytes_count_characters_for_bits_per_character(tmp_path: Path):
    (tmp_path / "a.txt").write_text("é" * 100)
    corpus = corpora.load_corpus(str(tmp_path / "a.txt"), "bytes", 4)
    assert len(corpus.train) == 180
    assert corpus.characters_per_token == 0.5


BAD_CORPORA = {
    "": "is empty; give it some text",
    "short": r"is too short: its first 90 % are 4 tokens and the rest 1; a context of 64 needs at least 65",
    b"caf\xe9 au lait": "is not UTF-8: byte 0xe9 at offset 3; convert it",
}


@pytest.mark.parametrize("content", BAD_CORPORA, ids=repr)
def test_a_corpus_that_cannot_be_used_is_refused(tmp_path: Path, content: str | bytes):
    path = tmp_path / "notes.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=BAD_CORPORA[content]):
        corpora.load_corpus(str(path), "characters", 64)


def test_a_corpus_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(
        ValueError, match="it is no file, folder or glob with files in it, nor one of python-docs"
    ):
        corpora.load_corpus(str(tmp_path / "nothing*"), "characters", 64)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpora.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "jaxformer" / "tinyshakespeare.txt"


def test_shakespeare_is_downloaded_once_and_checked(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "source.txt"
    source.write_text("First Citizen:")
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", source.as_uri())
    with pytest.raises(ValueError, match="is not tiny Shakespeare: its SHA-256 is"):
        corpora.shakespeare()
    assert not cache.exists()
    digest = corpora.hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", digest)
    assert corpora.shakespeare() == "First Citizen:"
    source.unlink()
    assert corpora.shakespeare() == "First Citizen:"
    cache.write_text("First Citizen")
    with pytest.raises(ValueError, match="remove the file and try again"):
        corpora.shakespeare()


def test_shakespeare_offline_says_what_to_do(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", (tmp_path / "gone.txt").as_uri())
    with pytest.raises(OSError, match=r"without a network, put the file at .*tinyshakespeare.txt"):
        corpora.shakespeare()
