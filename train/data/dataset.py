"""The data of a run: texts, token files and toy tasks behind one interface."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Int, Integer, Key

from jaxformer.text.tokenizer import Tokenizer
from train.data.batches import (
    Batch,
    cover,
    draw_windows,
    held_out_starts,
    host_starts,
    shuffled_starts,
)
from train.data.corpora import load_corpus
from train.data.encoding import vocabulary
from train.data.ngrams import ngram_losses
from train.data.tasks import TASKS, Task
from train.data.tokenfile import TokenFile, is_token_file, open_tokens
from train.recipe import Recipe

Rows = slice | Int[np.ndarray, " rows"]
"""The sequences of a batch to draw."""
ALL = slice(None)


@runtime_checkable
class Draw(Protocol):
    """A function that draws the batches of some steps; it reads only the given rows."""

    def __call__(
        self, key: Key[Array, ""], steps: Int[np.ndarray, " steps"], rows: Rows = ALL, /
    ) -> Batch:
        """Return these rows of these steps, `[steps b window]`, independent of earlier calls."""
        ...


class Data(NamedTuple):
    """A source of batches, and losses to compare with."""

    tokenizer: Tokenizer
    draw: Draw
    held_out: Batch
    """validation batches, `[batches b window]`; padding rows of the last do not count"""
    about: str
    """how much data there is, in words"""
    sha256: str
    """hash of the text; for a toy task, its name"""
    yardsticks: Callable[[], dict[str, float]]
    """losses per token of simple predictors without a neural network, by name"""
    perfect: float | None = None
    """loss of the best possible predictor, if it is known"""
    characters_per_token: float | None = None
    """of the validation text or of all of a token file; converts losses per token to losses per character"""
    prompt: Int[np.ndarray, " t"] | None = None
    """tokens for a sample to continue; None: samples make no sense for this data"""


def open_data(recipe: Recipe, own: Tokenizer | None = None) -> Data:
    """Open the data of a Recipe.

    Args:
        recipe: with --start, its config must be that of the model to start from.
        own: tokenizer of the model to start from, if it has one.

    Raises:
        ValueError: the corpus does not exist, is too short, or does not fit the Recipe or the model.
        OSError: the corpus cannot be read or downloaded.
    """
    if recipe.corpus in TASKS:
        if recipe.start is not None:
            raise ValueError(
                f"corpus={recipe.corpus} has a vocabulary of its own, so a run on it cannot start from a model; "
                "give a text as --corpus, or leave --start out"
            )
        return _from_task(TASKS[recipe.corpus](), recipe)
    path = Path(recipe.corpus)
    if path.is_file() and is_token_file(path):
        file = open_tokens(path)
        return _from_file(file, recipe, _fitting(file, recipe, own))
    if recipe.start is not None and own is None:
        raise ValueError(
            f"{recipe.start} has no tokenizer to read the text {recipe.corpus!r} with; "
            "give as --corpus a file that train.prepare wrote with the tokenizer of this model"
        )
    return _from_text(recipe, own)


def rows(recipe: Recipe) -> int:
    """Return the batch size of the validation, which is that of a micro-batch."""
    return recipe.batch // recipe.accumulate


def _fitting(file: TokenFile, recipe: Recipe, own: Tokenizer | None) -> Tokenizer:
    """Return the tokenizer of a run on a token file.

    Raises:
        ValueError: the vocabulary of the file is not that of the model to start from.
    """
    if own is not None and vocabulary(own) != vocabulary(file.tokenizer):
        raise ValueError(
            f"{recipe.corpus} was prepared with another vocabulary than that of {recipe.start}; prepare it "
            f"again with python -m train.prepare ... --tokenizer {recipe.start}"
        )
    if recipe.start is not None and file.tokenizer.n_vocab > recipe.config.n_vocab:
        raise ValueError(
            f"{recipe.corpus} was prepared with a vocabulary of {file.tokenizer.n_vocab}, but {recipe.start} "
            f"has {recipe.config.n_vocab} entries; prepare it again with the tokenizer of this model"
        )
    return own or file.tokenizer


def _from_text(recipe: Recipe, own: Tokenizer | None) -> Data:
    corpus = load_corpus(recipe.corpus, own or recipe.tokenizer, recipe.context)
    n_vocab = corpus.tokenizer.n_vocab
    return Data(
        tokenizer=corpus.tokenizer,
        draw=_windows_of(corpus.train, recipe),
        held_out=Batch(*cover(corpus.validation, rows(recipe), recipe.context)),
        about=f"{len(corpus.train):,} tokens to train on, {len(corpus.validation):,} to validate on",
        sha256=corpus.sha256,
        yardsticks=lambda: ngram_losses(corpus.train, corpus.validation, n_vocab),
        characters_per_token=corpus.characters_per_token,
        prompt=corpus.validation[:32],
    )


def _from_file(file: TokenFile, recipe: Recipe, tokenizer: Tokenizer) -> Data:
    tokens, context = file.tokens, recipe.context
    starts = held_out_starts(len(tokens), context)
    windows = draw_windows(tokens, starts, context)
    train = tokens[: len(tokens) * 9 // 10]
    return Data(
        tokenizer=tokenizer,
        draw=_windows_of(train, recipe),
        held_out=in_batches(windows, rows(recipe)),
        about=f"{len(train):,} tokens to train on, {len(starts) * context:,} to validate on",
        sha256=file.sha256,
        yardsticks=lambda: {"chance": math.log(tokenizer.n_vocab)},
        characters_per_token=file.n_characters / len(tokens),
        prompt=windows[0][:32],
    )


def _from_task(task: Task, recipe: Recipe) -> Data:
    batch, context = recipe.batch, recipe.context
    if recipe.order != "random":
        raise ValueError(
            f"order={recipe.order} needs the windows of a text; {recipe.corpus} has none, so leave --order out"
        )
    jax.eval_shape(
        lambda: task.draw(jax.random.key(0), batch, context)
    )  # raises if the task does not fit the Recipe

    @jax.jit
    def draw_all(key: Key[Array, ""], steps: Int[Array, " steps"]) -> Batch:
        return jax.vmap(lambda step: task.draw(jax.random.fold_in(key, step), batch, context))(
            steps
        )

    def draw(key: Key[Array, ""], steps: Int[np.ndarray, " steps"], rows: Rows = ALL, /) -> Batch:
        drawn = draw_all(key, steps)
        return drawn if rows is ALL else jax.tree.map(lambda x: np.asarray(x)[:, rows], drawn)

    held_out = jax.tree.map(np.asarray, task.held_out(context))
    return Data(
        tokenizer=task.tokenizer,
        draw=draw,
        held_out=held_out,
        about=f"batches drawn as they are needed, {held_out.counted.sum():,} answers to validate on",
        sha256=recipe.corpus,
        yardsticks=lambda: task.yardsticks(context),
        perfect=task.perfect(context),
        prompt=held_out.windows[0, 0, :8] if held_out.counted.all() else None,
    )


def _windows_of(tokens: Integer[np.ndarray, " corpus"], recipe: Recipe) -> Draw:
    """Return a function that draws windows of the tokens, which may be on the disk, in the order of the Recipe."""
    n, batch, context = len(tokens), recipe.batch, recipe.context

    def draw(key: Key[Array, ""], steps: Int[np.ndarray, " steps"], rows: Rows = ALL, /) -> Batch:
        if recipe.order == "shuffled":
            starts = shuffled_starts(key, steps, n, batch, context)
        else:
            starts = host_starts(key, steps, n - context, batch)
        windows = draw_windows(tokens, starts[:, rows], context)
        return Batch(windows, np.ones(windows[..., 1:].shape, bool))

    draw(jax.random.key(0), np.arange(1))  # raises now if no batch can be drawn
    return draw


def in_batches(windows: Int[np.ndarray, "rows window"], batch: int) -> Batch:
    """Group windows into batches of this many rows; padding rows of the last batch do not count."""
    n = -(-len(windows) // batch)
    missing = n * batch - len(windows)
    padded = np.pad(windows, ((0, missing), (0, 0)))
    counted = np.arange(n * batch)[:, None] < np.full(windows.shape[1] - 1, len(windows))
    return Batch(padded.reshape(n, batch, -1), counted.reshape(n, batch, -1))
