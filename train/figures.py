"""Figures: a report page for one run, and a comparison of several runs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.metrics import Line

Lines = Sequence[Line]
HEADS = {
    "induction": "induction score",
    "previous_token": "previous-token score",
    "pattern_entropy": "entropy of the pattern (nats)",
}
UPDATES = {"attn_update_norm": "attention", "mlp_update_norm": "MLP"}


def write_report(
    path: Path, lines: Lines, yardsticks: Mapping[str, float], perfect: float | None = None
) -> None:
    """Write the report page of a run as a PNG."""
    draw_report(lines, yardsticks, perfect).savefig(path)


def draw_report(
    lines: Lines, yardsticks: Mapping[str, float], perfect: float | None = None
) -> Figure:
    """Return the report page: losses, those of simple and perfect predictors, learning rate, speed, measurements."""
    plots: list[Callable[[Axes], Any]] = [
        lambda axes: _losses(axes, lines, yardsticks, perfect),
        lambda axes: _curve(axes, lines, "learning_rate", "learning rate"),
        lambda axes: _throughput(axes, lines),
        lambda axes: _curve(axes, lines, "gradient_norm", "norm of the gradient"),
    ]
    # A model without layers has measurements without values.
    measured = {name for line in lines for name, value in line.items() if np.size(value)}
    if not measured.isdisjoint(UPDATES):
        plots.append(lambda axes: _updates(axes, lines))
    watched = [name for name in HEADS if name in measured]
    plots += [lambda axes, name=name: _heads(axes, lines, name) for name in watched]
    rows = -(-len(plots) // 2)
    figure = Figure(figsize=(12, 3.4 * rows), dpi=110, layout="constrained")
    places: Any = figure.subplots(rows, 2, squeeze=False)
    for plot, axes in zip(plots, places.flat, strict=False):
        plot(axes)
    for axes in places.flat[len(plots) :]:
        axes.set_axis_off()
    return figure


def write_comparison(path: Path, runs: Mapping[str, Lines]) -> None:
    """Plot training and validation losses of several runs over steps and over seconds."""
    figure = Figure(figsize=(12, 4.4), dpi=110, layout="constrained")
    places: Any = figure.subplots(1, 2, sharey=True)
    for number, (name, lines) in enumerate(runs.items()):
        colour, clock = f"C{number}", dict(zip(*_clock(lines), strict=True))
        for axes, at in zip(places, (lambda step: step, clock.get), strict=True):
            steps, losses = points(lines, "loss")
            axes.plot([at(s) for s in steps], losses, color=colour, alpha=0.35, linewidth=1)
            known = [(at(s), v) for s, v in zip(*points(lines, "validation_loss"), strict=True)]
            known = [(s, v) for s, v in known if s is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=colour, marker="o", label=name)
    places[0].set(xlabel="step", ylabel="loss (nats per token)")
    places[1].set(xlabel="seconds of training")
    places[0].legend()
    figure.savefig(path)


def points(lines: Lines, name: str) -> tuple[list[int], list[Any]]:
    """Return the steps and values of the lines that have this name."""
    held = [line for line in lines if name in line]
    return [line["step"] for line in held], [line[name] for line in held]


def _clock(lines: Lines) -> tuple[list[int], list[float]]:
    """Return steps and the seconds of training up to each, without compilation and validation."""
    steps, seconds = points(lines, "seconds")
    return [0, *steps], [0.0, *np.cumsum(seconds).tolist()]


def _losses(
    axes: Axes, lines: Lines, yardsticks: Mapping[str, float], perfect: float | None
) -> None:
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        steps, values = points(lines, name)
        if not steps:
            continue
        [line] = axes.plot(steps, values, label=label, marker="o" if name != "loss" else None)
        _, spread = points(lines, f"{name}_spread")
        if spread:
            low, high = np.subtract(values, spread), np.add(values, spread)
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.25, linewidth=0)
    floors = {} if perfect is None else {"perfect": perfect}
    for name, loss in {**yardsticks, **floors}.items():
        style = "-" if name == "perfect" else "--"
        axes.axhline(loss, color="grey", linewidth=0.8, linestyle=style)
        axes.annotate(
            name, (0.995, loss), xycoords=("axes fraction", "data"), ha="right", va="bottom",
            color="grey",
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend(loc="center right")


def _curve(axes: Axes, lines: Lines, name: str, label: str) -> None:
    axes.plot(*points(lines, name))
    axes.set(xlabel="step", ylabel=label)


def _throughput(axes: Axes, lines: Lines) -> None:
    steps, seconds = points(lines, "seconds")
    _, lengths = points(lines, "steps")
    axes.plot(steps, np.divide(seconds, lengths) * 1e3)
    axes.set(xlabel="step", ylabel="milliseconds per step", ylim=(0, None))


def _updates(axes: Axes, lines: Lines) -> None:
    """Plot one line per layer; later layers are darker."""
    for (name, label), colours in zip(UPDATES.items(), ("Blues", "Oranges"), strict=True):
        steps, values = points(lines, name)
        if not steps:
            continue
        from matplotlib import colormaps

        layers = _first_member(values, axes=2).T
        for layer, norms in enumerate(layers):
            shade = colormaps[colours](0.4 + 0.6 * (layer + 1) / len(layers))
            axes.plot(steps, norms, color=shade, label=f"{label} {layer}")
    axes.set(xlabel="step", ylabel="norm of the updates")
    axes.legend(fontsize="x-small", ncols=2)


def _heads(axes: Axes, lines: Lines, name: str) -> None:
    """Plot a heat map: heads from the first layer (bottom) to the last, validations from left to right."""
    steps, values = points(lines, name)
    scores = _first_member(values, axes=3)  # [step l n]
    top = 1.0 if name != "pattern_entropy" else None
    each = scores.reshape(len(steps), -1).T
    image = axes.imshow(
        each, aspect="auto", origin="lower", vmin=0.0, vmax=top, interpolation="none"
    )
    shown = range(0, len(steps), max(len(steps) // 6, 1))
    axes.set_xticks(list(shown), [str(steps[i]) for i in shown])
    labels = [
        f"{layer}.{head}" for layer in range(scores.shape[1]) for head in range(scores.shape[2])
    ]
    every = max(len(labels) // 16, 1)
    axes.set_yticks(range(0, len(labels), every), labels[::every])
    axes.set(xlabel="step", ylabel="layer.head", title=HEADS[name])
    axes.figure.colorbar(image, ax=axes)


def _first_member(values: Sequence[Any], axes: int) -> np.ndarray:
    """Return an array with this many axes. An ensemble has one more, for its members; take the first member."""
    array = np.asarray(values)
    return array if array.ndim == axes else array[:, 0]
