"""The training loop: train, save, validate, until the last step or until the user stops it."""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxformer.model.params import count
from train.checkpoints import Checkpoints
from train.compiled import Steps, many_steps
from train.data.batches import Batch
from train.devices.processes import Refused, by_first, is_loss, of_each
from train.evaluate import all_finite, make_evaluation, summary
from train.metrics import Line, Metrics
from train.optimizer import make_optimizer, schedule
from train.report import finish, progress_bar, save_models, write_sample
from train.run import Run, draw, fresh_state, state_shapes
from train.step import TrainState, steps_done


class Interrupted(Exception):  # noqa: N818  a request, not an error
    """Ctrl-C or SIGTERM stopped the run; its state is saved."""

    def __init__(self, number: int, sentence: str):
        super().__init__(sentence)
        self.status = 128 + number
        """exit status that shells report for a process ended by this signal"""


def train(run: Run, *, resume: bool = False) -> Metrics:
    """Train to the last step of the Recipe and return the metrics.

    Raises:
        RunError: the loss is not finite, or a state cannot be saved or restored.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    checkpoints = Checkpoints(run.folder, run.keep)
    entered = contextlib.ExitStack()
    try:
        if resume:
            state = checkpoints.restore(state_shapes(run.recipe, run.config, run.layout))
        else:
            state = fresh_state(run.recipe, run.config, run.first, run.layout)
        done = steps_done(state)
        metrics = open_metrics(run, done, entered)
        checkpoints.best_step = metrics.best_step
        models = "" if run.recipe.seeds == 1 else f"{run.recipe.seeds} models of "
        run.console.print(
            f"{models}{count(run.config):,} parameters, {run.data.about}, "
            f"vocabulary {run.config.n_vocab}{run.layout.about}"
        )
        if resume and done:
            run.console.print(f"resuming from step {done}")
        _Loop(run, metrics, checkpoints).go(state)
        checkpoints.finish()
    except OSError as error:
        raise checkpoints.unwritten(error) from error
    finally:
        entered.close()
        if not is_loss(sys.exception()):  # closing would wait for the lost process
            checkpoints.close()
    by_first(lambda: finish(run, metrics))
    return metrics


def open_metrics(run: Run, done: int, entered: contextlib.ExitStack) -> Metrics:
    """Open the metrics at this step: process 0 removes later lines and writes new ones; the others only read."""
    opened: list[Metrics] = []

    def begin() -> None:
        listeners = [entered.enter_context(listener(done)) for listener in run.listeners]
        opened.append(Metrics(run.folder, done, listeners))

    by_first(begin)
    return opened[0] if opened else Metrics(run.folder, done, writes=False)


class _Loop:
    """The loop of a run: a chunk of steps in one compiled call, then save and validate where due."""

    def __init__(self, run: Run, metrics: Metrics, checkpoints: Checkpoints):
        self.run, self.metrics, self.checkpoints = run, metrics, checkpoints
        recipe = run.recipe
        self.evaluate = make_evaluation(run)
        self.optimizer = make_optimizer(run.config, recipe.optimizer, recipe.steps)
        self.rate = schedule(recipe.optimizer, recipe.optimizer.learning_rate, recipe.steps)
        self.compiled: dict[int, Steps] = {}

    def go(self, state: TrainState) -> None:
        """Train until the last step or a request to stop."""
        recipe, console = self.run.recipe, self.run.console
        with progress_bar(console) as bar, _stop_requests() as requested:
            task = bar.add_task("training", total=recipe.steps, loss=math.nan, speed=0.0)
            while True:
                done = steps_done(state)
                bar.update(task, completed=done)
                self.save_and_validate(state)
                if done >= recipe.steps:
                    return
                if number := int(of_each(requested()).max()):
                    self.stop(state, number)
                state, line = self.chunk(state)
                tokens = recipe.seeds * recipe.batch * recipe.context * line["steps"]
                bar.update(task, loss=line["loss"], speed=tokens / line["seconds"])

    def chunk(self, state: TrainState) -> tuple[TrainState, Line]:
        """Train up to the next multiple of the chunk."""
        recipe, done = self.run.recipe, steps_done(state)
        length = min(recipe.chunk - done % recipe.chunk, recipe.steps - done)
        batches = draw(self.run, np.arange(done, done + length))
        if length not in self.compiled:
            self.compiled[length] = self.compile(state, batches)
        start = time.perf_counter()
        state, history = self.compiled[length](state, batches)
        losses, norms = (np.asarray(history[name]) for name in ("loss", "gradient_norm"))
        seconds = time.perf_counter() - start
        self.check_finite(np.isfinite(losses) & np.isfinite(norms), done)
        line = {"step": done + length} | summary("loss", losses.mean(axis=0, dtype=np.float64))
        line |= {
            "gradient_norm": float(norms.mean(dtype=np.float64)),
            "learning_rate": float(np.asarray(self.rate(done + length - 1))),
            "steps": length,
            "seconds": seconds,
        }
        self.metrics.write(line)
        return state, line

    def compile(self, state: TrainState, batches: Batch) -> Steps:
        """Compile the steps before the clock starts, so that it measures only training."""
        run = self.run
        steps: Any = many_steps(
            run.config, self.optimizer, run.step_options, run.layout, members=run.recipe.seeds
        )
        return steps.lower(state, batches).compile()

    def save_and_validate(self, state: TrainState) -> None:
        """Save and validate if this step is due; save first, so that a failure of the validation loses nothing."""
        recipe, done = self.run.recipe, steps_done(state)
        due = done % recipe.validate_every == 0 or done == recipe.steps
        if not due or done in self.metrics.validations():
            return
        self.save(state)
        line = self.evaluate(state)
        loss = line["validation_loss"]
        if not math.isfinite(loss):
            self.checkpoints.remove(done)  # a run cannot resume from this state
            raise Refused(self.diverged("the validation loss", done))
        if better := loss < self.metrics.best():
            save_models(self.run, state.params)
        if done == 0:
            by_first(lambda: write_sample(self.run, "before training"))
        self.metrics.write(line)
        spread = f" ± {line['validation_loss_spread']:.4f}" if recipe.seeds > 1 else ""
        self.run.console.print(
            f"step {done:>6}  validation loss {loss:.4f}{spread}" + ("  (best)" if better else "")
        )

    def save(self, state: TrainState) -> None:
        """Begin to save a state.

        Raises:
            RunError: a parameter is not finite.
        """
        if not all_finite(state.params):
            raise Refused(self.diverged("a parameter", steps_done(state)))
        self.checkpoints.save(state)

    def stop(self, state: TrainState, number: int) -> None:
        """Save the state and leave the loop.

        Raises:
            Interrupted: always.
        """
        self.save(state)
        self.checkpoints.finish()
        sentence = f"stopped at step {steps_done(state)}; the state is saved in {self.run.folder}"
        raise Interrupted(number, sentence)

    def check_finite(self, finite: np.ndarray, done: int) -> None:
        """Refuse losses or gradients that are not finite, and name the first such step."""
        good = finite.reshape(len(finite), -1).all(axis=1)
        if not good.all():
            step = done + int(good.argmin()) + 1
            raise Refused(self.diverged("the loss or its gradient", step))

    def diverged(self, what: str, step: int) -> str:
        """Wait for earlier saves, and return the message for a run that diverged."""
        self.checkpoints.finish()
        rate = self.run.recipe.optimizer.learning_rate
        return (
            f"{what} is not finite at step {step}; the last good checkpoint is {self.checkpoints.last()}. "
            f"Lower --optimizer.learning-rate (it is {rate}) or raise --optimizer.warmup"
        )


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], int]]:
    """Record Ctrl-C and SIGTERM for the loop, which stops between two compiled calls; a second Ctrl-C stops at once."""
    received: list[int] = []

    def record(number: int, frame: object) -> None:
        del frame
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
