"""The run itself: train, look, save, until the steps are done or the user has had enough."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxformer.checkpoint import load, save
from jaxformer.config import Config
from jaxformer.transformer import Params, count, init
from train.batches import cover
from train.corpora import Corpus
from train.ngrams import ngram_losses
from train.optimizer import make_optimizer
from train.presets import Recipe
from train.report import plot_losses, progress_bar, yardstick_table
from train.runs import Checkpoints, Metrics, RunError
from train.sample import continue_text
from train.step import Steps, TrainState, many_steps, summed_losses


class Interrupted(Exception):  # noqa: N818  not an error: the user's wish
    """The user pressed Ctrl-C; the state of this step is saved."""


class Run(NamedTuple):
    """What stays the same from the first step of a run to the last."""

    recipe: Recipe
    config: Config
    corpus: Corpus
    folder: Path
    console: Console


def fresh_state(recipe: Recipe, config: Config) -> TrainState:
    """The state before the first step."""
    params: Any = init(config, jax.random.key(recipe.seed))
    moments = make_optimizer(config, recipe.optimizer, recipe.steps).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, moments)


def train(run: Run, *, resume: bool = False) -> float:
    """Train to the recipe's last step; the best validation loss, in nats per token.

    Raises:
        RunError: the loss is no number any more, or a state cannot be saved or restored.
        Interrupted: after Ctrl-C, with the state saved.
    """
    checkpoints = Checkpoints(run.folder)
    try:
        state = fresh_state(run.recipe, run.config)
        if resume:
            state = checkpoints.restore(state)
        metrics = Metrics(run.folder, int(state.step))
        console, corpus = run.console, run.corpus
        console.print(
            f"{count(run.config):,} parameters, {len(corpus.train):,} tokens to train on, "
            f"{len(corpus.validation):,} to validate on, vocabulary {run.config.n_vocab}"
        )
        validate = make_validation(run)
        if not resume:
            _validate_and_save(run, state, validate, metrics, checkpoints)
            _write_sample(run, state.params, "before training")
        elif int(state.step):
            console.print(f"going on from step {int(state.step)}")
        state = _steps(run, state, validate, metrics, checkpoints)
        checkpoints.finish()
    finally:
        checkpoints.close()
    _finish(run, metrics)
    return metrics.best()


def _steps(
    run: Run,
    state: TrainState,
    validate: Callable[[TrainState], float],
    metrics: Metrics,
    checkpoints: Checkpoints,
) -> TrainState:
    recipe = run.recipe
    trainers: dict[int, Steps] = {}
    tokens = jnp.asarray(run.corpus.train)
    key = jax.random.key(recipe.seed + 1)
    with progress_bar(run.console) as bar, _until_interrupted() as interrupted:
        task = bar.add_task("training", total=recipe.steps, loss=math.nan, speed=0.0)
        bar.update(task, completed=int(state.step))
        while (done := int(state.step)) < recipe.steps:
            length = min(recipe.chunk - done % recipe.chunk, recipe.steps - done)
            if length not in trainers:
                trainers[length] = _compile(run, length)
            start = time.perf_counter()
            state, history = trainers[length](state, tokens, key)
            losses = np.asarray(history["loss"])
            seconds = time.perf_counter() - start
            done += length
            _check_finite(run, history, done)
            speed = length * recipe.batch * recipe.context / seconds
            loss = float(losses.mean(dtype=np.float64))
            metrics.write(
                step=done,
                loss=loss,
                gradient_norm=float(np.asarray(history["gradient_norm"]).mean(dtype=np.float64)),
                seconds=seconds,
            )
            bar.update(task, completed=done, loss=loss, speed=speed)
            if done % recipe.validate_every == 0 or done == recipe.steps:
                _validate_and_save(run, state, validate, metrics, checkpoints)
            if interrupted() and done < recipe.steps:
                checkpoints.save(state)
                checkpoints.finish()
                raise Interrupted(f"stopped at step {done}; the state is saved in {run.folder}")
    return state


def _compile(run: Run, length: int) -> Steps:
    recipe = run.recipe
    optimizer = make_optimizer(run.config, recipe.optimizer, recipe.steps)
    return many_steps(
        run.config,
        optimizer,
        batch=recipe.batch,
        context=recipe.context,
        compute=recipe.compute,
        length=length,
    )


def make_validation(run: Run) -> Callable[[TrainState], float]:
    """A function from a state to the mean loss over every token of the validation split but the first."""
    windows, real = cover(run.corpus.validation, 32, run.recipe.context)
    windows, real = jnp.asarray(windows), jnp.asarray(real)
    sums = summed_losses(run.config, run.recipe.compute)

    def validate(state: TrainState) -> float:
        total = np.asarray(sums(state.params, windows, real)).sum(dtype=np.float64)
        return float(total / (len(run.corpus.validation) - 1))

    return validate


def _validate_and_save(
    run: Run,
    state: TrainState,
    validate: Callable[[TrainState], float],
    metrics: Metrics,
    checkpoints: Checkpoints,
) -> None:
    step, loss = int(state.step), validate(state)
    if not math.isfinite(loss):
        raise RunError(diverged(run, "the validation loss", step))
    better = loss < metrics.best()
    if better:
        save(run.folder / "model", run.config, state.params, run.corpus.tokenizer)
    metrics.write(step=step, validation_loss=loss)
    checkpoints.save(state, loss)
    run.console.print(
        f"step {step:>6}  validation loss {loss:.4f}" + ("  (best)" if better else "")
    )


def _check_finite(run: Run, history: dict[str, jax.Array], done: int) -> None:
    losses = np.asarray(history["loss"])
    bad = ~(np.isfinite(losses) & np.isfinite(np.asarray(history["gradient_norm"])))
    if bad.any():
        step = done - len(losses) + int(bad.argmax()) + 1
        raise RunError(diverged(run, "the loss or its gradient", step))


def diverged(run: Run, what: str, step: int) -> str:
    """The sentence for a run that left the finite numbers."""
    return (
        f"{what} is no finite number at step {step}; nothing after the last validation was kept in {run.folder}. "
        f"Lower --optimizer.learning-rate (it is {run.recipe.optimizer.learning_rate}), or lengthen --optimizer.warmup"
    )


def _write_sample(run: Run, params: Params, title: str) -> None:
    """Go on from the start of the validation text, and keep what came in place of an older sample."""
    tokenizer = run.corpus.tokenizer
    prompt = tokenizer.decode(run.corpus.validation[: min(32, run.recipe.context)])
    text = continue_text(
        params, run.config, tokenizer, prompt, 200, jax.random.key(run.recipe.seed + 2),
        temperature=0.8, window=run.recipe.context,
    )  # fmt: skip
    path = run.folder / "samples.txt"
    older = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept = older.split(f"--- {title}\n")[0]
    path.write_text(f"{kept}--- {title}\n{prompt}|{text}\n", encoding="utf-8")


def _finish(run: Run, metrics: Metrics) -> None:
    corpus, console = run.corpus, run.console
    yardsticks = ngram_losses(corpus.train, corpus.validation, run.config.n_vocab)
    plot_losses(run.folder / "loss.png", metrics.lines, yardsticks)
    _write_sample(run, load(run.folder / "model")[1], "the best model")
    console.print(
        yardstick_table(yardsticks, {"this model": metrics.best()}, corpus.characters_per_token)
    )
    console.print(
        (run.folder / "samples.txt").read_text(encoding="utf-8"), markup=False, highlight=False
    )


@contextlib.contextmanager
def _until_interrupted() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted, and heeded between two compiled calls; a second one stops at once."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        del frame
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)
