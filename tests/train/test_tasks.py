"""Toy tasks: batches follow the rules of the task, and the best possible loss is exact."""

import math
from collections import Counter
from functools import lru_cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.errors import raises
from train.data.tasks import TASKS, Task
from train.data.tasks.brackets import CLOSE, OPEN
from train.data.tasks.grammar import Story, choices
from train.data.tasks.induction import periods

KEY = jax.random.key(0)
CONTEXT = {"grammar": 20, "induction": 23, "modular-addition": 3, "brackets": 9}


@lru_cache
def made(name: str) -> Task:
    return TASKS[name]()


@lru_cache
def drawn(name: str, batch: int = 512, context: int | None = None) -> tuple[np.ndarray, ...]:
    """Draw windows and the mask of the targets that count."""
    task, context = made(name), context or CONTEXT[name]
    return tuple(map(np.asarray, jax.jit(lambda key: task.draw(key, batch, context))(KEY)))


@pytest.mark.slow(unless=("modular-addition",))
@pytest.mark.parametrize("name", TASKS)
def test_a_batch_is_a_function_of_its_key(name: str):
    task, context = made(name), CONTEXT[name]
    keys = jax.random.split(KEY)
    draw = lambda key: task.draw(key, 6, context)  # noqa: E731
    together, alone = jax.jit(jax.vmap(draw))(keys), jax.jit(draw)(keys[0])
    assert alone.windows.shape == (6, context + 1)
    assert alone.counted.shape == (6, context)
    assert alone.windows.dtype == jnp.int32
    np.testing.assert_array_equal(together.windows[0], alone.windows)
    np.testing.assert_array_equal(together.counted[0], alone.counted)
    assert not np.array_equal(together.windows[0], together.windows[1])


@pytest.mark.parametrize("name", TASKS)
def test_validation_batches_are_fixed_and_fit_the_tokenizer(name: str):
    task, context = made(name), CONTEXT[name]
    windows, counted = map(np.asarray, task.held_out(context))
    np.testing.assert_array_equal(windows, task.held_out(context).windows)
    assert windows.shape == (*counted.shape[:2], context + 1)
    assert windows.min() == 0
    assert windows.max() < task.tokenizer.n_vocab
    assert counted.any(axis=(1, 2)).all()
    text = task.tokenizer.decode(windows[0, 0])
    np.testing.assert_array_equal(task.tokenizer.encode(text), windows[0, 0])


@pytest.mark.parametrize("name", TASKS)
def test_better_predictors_have_lower_losses(name: str):
    task, context = made(name), CONTEXT[name]
    losses = [*task.yardsticks(context).values(), task.perfect(context)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] <= math.log(task.tokenizer.n_vocab)


BAD_CONTEXTS = {
    ("grammar", 0): ("context=0", 1),
    ("induction", 6): ("context=6", "induction", 7, 124),
    ("induction", 125): ("context=125", "induction", 7, 124),
    ("modular-addition", 4): ("context=4", "modular-addition", "context=3"),
    ("brackets", 8): ("context=8", "brackets", 3),
    ("brackets", 1): ("context=1", "brackets", 3),
}


@pytest.mark.parametrize(("name", "context"), BAD_CONTEXTS)
def test_a_context_that_a_task_cannot_use_is_refused(name: str, context: int):
    task = made(name)
    for use in (
        lambda: task.draw(KEY, 2, context),
        lambda: task.held_out(context),
        lambda: task.perfect(context),
        lambda: task.yardsticks(context),
    ):
        with raises(ValueError, *BAD_CONTEXTS[name, context]):
            use()


next_words = lru_cache(choices)


def surprises(windows: np.ndarray) -> np.ndarray:
    """Return -log p(word | earlier words) of each target, from the rules of the grammar."""
    task = made("grammar")
    losses = []
    for window in windows:
        story = Story()
        for word in task.tokenizer.decode(window).split():
            chance, story = next_words(story)[word]  # a KeyError would be a word that cannot follow
            losses.append(-math.log(chance))
    return np.array(losses).reshape(windows.shape)[:, 1:]


def test_the_grammar_s_floor_is_the_mean_surprise_of_its_words():
    windows = drawn("grammar", 2000, 40)[0]
    per_window = surprises(windows).mean(axis=1)
    error = per_window.std() / math.sqrt(len(windows))
    assert error < 0.005
    assert made("grammar").perfect(40) == pytest.approx(per_window.mean(), abs=4 * error)


def test_the_grammar_s_floor_is_the_entropy_of_all_its_windows():
    """The chain rule: the entropies of the words, each given the earlier ones, add up to that of the window."""
    windows = [(1.0, Story())]
    for length in range(10):
        windows = [
            (p * chance, after) for p, story in windows for chance, after in choices(story).values()
        ]
        total = -sum(p * math.log(p) for p, _ in windows)
        if length:
            assert made("grammar").perfect(length) == pytest.approx(total / length, rel=1e-12)


def test_the_grammar_s_ngram_yardsticks_are_those_of_its_words():
    windows = drawn("grammar", 4000, 30)[0]
    words, before = Counter(windows[:, 1:].ravel()), Counter(windows[:, :-1].ravel())
    pairs = Counter(pair for window in windows.tolist() for pair in pairwise(window))
    total = words.total()
    unigram = -sum(n * math.log(n / total) for n in words.values()) / total
    bigram = -sum(n * math.log(n / before[pair[0]]) for pair, n in pairs.items()) / total
    exact = made("grammar").yardsticks(30)
    assert exact["unigram"] == pytest.approx(unigram, abs=0.01)
    assert exact["bigram"] == pytest.approx(bigram, abs=0.01)


def test_stories_restart_and_use_every_word():
    windows = drawn("grammar", 512, 64)[0]
    task = made("grammar")
    assert {task.tokenizer.decode(w[:1]) for w in windows} == {"once"}
    assert len(np.unique(windows)) == task.tokenizer.n_vocab


def test_induction_repeats_what_followed_the_current_token():
    windows, counted = drawn("induction")
    for window, counts in zip(windows.tolist(), counted, strict=True):
        for t, token in enumerate(window[:-1]):
            earlier = [s for s in range(t) if window[s] == token]
            assert counts[t] == bool(earlier)
            assert {window[s + 1] for s in earlier} <= {window[t + 1]}


def test_induction_draws_each_period_alike_and_each_token():
    windows, _ = drawn("induction", 4096)
    lengths = np.array([len(set(window)) for window in windows.tolist()])
    found = Counter(lengths.tolist())
    assert sorted(found) == list(periods(CONTEXT["induction"]))
    assert min(found.values()) > 0.8 * max(found.values())
    assert len(np.unique(windows)) == made("induction").tokenizer.n_vocab


def test_modular_addition_holds_out_what_it_never_trains_on():
    task = made("modular-addition")
    batches, counted = map(np.asarray, task.held_out(3))
    held_out = batches[counted[:, :, 2]]
    trained = drawn("modular-addition", 3830)[0]
    pairs = np.concatenate([trained, held_out])[:, :2]
    assert len(trained) == round(0.3 * 113**2 - 0.5)
    assert set(map(tuple, pairs.tolist())) == {(a, b) for a in range(113) for b in range(113)}
    assert len(pairs) == 113**2
    assert not counted[:, :, :2].any()
    with raises(ValueError, "batch=3831", 3830):
        task.draw(KEY, 3831, 3)


def test_modular_addition_adds():
    windows, counted = drawn("modular-addition", 3830)
    for window in windows[:500]:
        a, b, equals, answer = made("modular-addition").tokenizer.decode(window).split()
        assert equals == "="
        assert (int(a) + int(b)) % 113 == int(answer)
    assert (counted == [False, False, True]).all()
    some = drawn("modular-addition", 64)[0]
    assert {tuple(w) for w in some.tolist()} < {tuple(w) for w in windows.tolist()}


def balanced(text: str) -> bool:
    """Return whether removing adjacent pairs repeatedly leaves nothing."""
    while "()" in text:
        text = text.replace("()", "")
    return not text


@pytest.mark.slow
@pytest.mark.parametrize("context", [3, 9, 33])
def test_brackets_are_answered_as_they_balance(context: int):
    windows, counted = drawn("brackets", 2048, context)
    answers = []
    for window in windows:
        *text, ask, answer = made("brackets").tokenizer.decode(window).split()
        assert len(text) == context - 1
        assert ask == "?"
        assert answer == ("yes" if balanced("".join(text)) else "no")
        answers.append(answer == "yes")
    assert np.mean(answers) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2048))
    assert (counted == (np.arange(context) == context - 1)).all()


@pytest.mark.slow
def test_brackets_of_each_kind_are_drawn_alike():
    windows, _ = drawn("brackets", 16384)
    kinds: dict[tuple[int, int], Counter[str]] = {}
    for window in windows[:, :-2]:
        heights = np.cumsum(np.where(window == OPEN, 1, -1))
        assert set(window.tolist()) <= {OPEN, CLOSE}
        kind = (min(heights.min().item(), 0), heights[-1].item())
        kinds.setdefault(kind, Counter())[str(window)] += 1
    # 8 brackets: Catalan(4) = 14 balanced, 28 that end at 2, 28 that fall to -1
    sizes = {kind: len(found) for kind, found in kinds.items()}
    assert sizes == {(0, 0): 14, (0, 2): 28, (-1, 0): 28}
    for kind, found in kinds.items():
        share = found.total() / 16384
        assert share == pytest.approx(0.5 if kind == (0, 0) else 0.25, abs=0.02)
        expected = found.total() / len(found)
        chi_squared = sum((n - expected) ** 2 for n in found.values()) / expected
        freedom = len(found) - 1
        assert chi_squared < freedom + 4 * math.sqrt(2 * freedom)
