"""The output of a run: progress bar, table of losses, models, samples, figures."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxformer.decoding.sampling import Sampling
from jaxformer.decoding.streaming import stream_tokens
from jaxformer.model.params import Params
from jaxformer.pretrained.checkpoint import load, save
from train.data.encoding import sayable
from train.devices.processes import by_first, whole_on_first
from train.metrics import Metrics
from train.run import Run, keys, member, seeds


def progress_bar(console: Console) -> Progress:
    """Return a bar with the steps done, training loss, tokens per second and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=console,
    )


def loss_table(losses: dict[str, float], model: str, characters_per_token: float | None) -> Table:
    """Return a table of losses on the validation split: of simple predictors, of the model, of a perfect predictor."""
    table = Table(title="loss on the whole validation split")
    table.add_column("")
    table.add_column("nats per token", justify="right")
    if characters_per_token:
        table.add_column("bits per character", justify="right")
    for name, loss in losses.items():
        cells = [f"{loss:.3f}"]
        if characters_per_token:
            cells.append(f"{loss / math.log(2) / characters_per_token:.3f}")
        table.add_row(name, *cells, style="bold" if name == model else None)
    return table


def model_folder(run: Run, seed: int) -> Path:
    """Return the folder of the best model; in an ensemble, of the member with this seed."""
    return run.folder / "model" if run.recipe.seeds == 1 else run.folder / "models" / str(seed)


def save_models(run: Run, params: Params) -> None:
    """Save the model of every member: gather it from all processes, write it on process 0."""
    gathered: Any = jax.tree.map(whole_on_first, params)

    def write() -> None:
        for index, seed in enumerate(seeds(run.recipe)):
            folder = model_folder(run, seed)
            folder.parent.mkdir(exist_ok=True)
            save(folder, member(gathered, index, run.recipe.seeds), run.config, run.data.tokenizer)

    by_first(write)


def write_sample(run: Run, title: str) -> None:
    """Continue a prompt from the validation text with the saved model; replaces an older sample of this title."""
    if run.data.prompt is None:
        return
    params = load(model_folder(run, run.recipe.seed)).params
    tokenizer, context = run.data.tokenizer, run.recipe.context
    prompt = np.asarray(run.data.prompt[:context])
    pieces = stream_tokens(
        params, run.config, prompt, 200, keys(run.recipe.seed).samples,
        sampling=Sampling(temperature=0.8), edit=sayable(run.config, tokenizer), context=context,
    )  # fmt: skip
    begun, text = (tokenizer.decode(tokens) for tokens in (prompt, np.concatenate([*pieces])))
    path = run.folder / "samples.txt"
    older = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept = older.split(f"--- {title}\n")[0]
    path.write_text(f"{kept}--- {title}\n{begun}|{text}\n", encoding="utf-8")


def finish(run: Run, metrics: Metrics) -> None:
    """Write the figures and a sample of the best model, and print the table of losses."""
    from train.figures import write_report  # matplotlib takes a while

    data, console = run.data, run.console
    yardsticks = data.yardsticks()
    write_report(run.folder / "report.png", metrics.lines, yardsticks, data.perfect)
    write_sample(run, "the best model")
    name = "this model" if run.recipe.seeds == 1 else f"{run.recipe.seeds} models, mean"
    losses = yardsticks | {name: metrics.best()}
    if data.perfect is not None:
        losses["perfect"] = data.perfect
    console.print(loss_table(losses, name, data.characters_per_token))
    if (run.folder / "samples.txt").is_file():
        text = (run.folder / "samples.txt").read_text(encoding="utf-8")
        console.print(text, markup=False, highlight=False)
