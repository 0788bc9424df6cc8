"""Heat maps: every value at its position, named axes, colours centred at 0."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.interp.plots import MOST_TICKS, heat_map, path_map
from tests.helpers.errors import raises

ROOT = Path(__file__).parents[2]
VALUES = np.random.default_rng(0).standard_normal((5, 3, 4))


def panels(figure: Any) -> list[Any]:
    """Return the axes with an image; the colour bar has none."""
    return [axes for axes in figure.axes if axes.images]


def ticks(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels()]


def test_two_axes_are_rows_and_columns():
    [axes] = panels(heat_map(VALUES[0], ("layer", "position"), title="found", unit="nats"))
    np.testing.assert_array_equal(axes.images[0].get_array(), VALUES[0])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layer", "position")
    assert (ticks(axes.yaxis), ticks(axes.xaxis)) == (list("012"), list("0123"))
    assert axes.figure.get_suptitle() == "found"
    assert "nats" in {other.get_ylabel() for other in axes.figure.axes}


def test_zero_is_white_and_nan_is_grey():
    values = np.array([[-3.0, 0.0], [1.0, np.nan]])
    [axes] = panels(heat_map(values))
    image = axes.images[0]
    assert image.get_clim() == (-3.0, 3.0)
    assert image.get_array().mask.tolist() == [[False, False], [False, True]]
    blue, white, red = (image.cmap(image.norm(x)) for x in (-3.0, 0.0, 3.0))
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert min(white[:3]) > 0.95
    [zeros] = panels(heat_map(np.zeros((2, 2))))
    assert zeros.images[0].get_clim() == (-1.0, 1.0)


def test_one_axis_is_a_row_and_three_are_panels_of_one_scale():
    [row] = panels(heat_map(VALUES[0, 0], ("head",)))
    np.testing.assert_array_equal(row.images[0].get_array(), VALUES[0, :1])
    assert (row.get_xlabel(), row.get_ylabel(), ticks(row.yaxis)) == ("head", "", [""])
    many = panels(heat_map(VALUES, ("layer", "head", "position")))
    assert [axes.get_title() for axes in many] == [f"layer {layer}" for layer in range(5)]
    for axes, values in zip(many, VALUES, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), values)
        assert axes.images[0].get_clim() == (-np.abs(VALUES).max(), np.abs(VALUES).max())
        assert (axes.get_ylabel(), axes.get_xlabel()) == ("head", "position")
    by = ("score", "layer", "head")
    [one, other] = panels(heat_map(VALUES[:2], by, labels={"score": ["copying", "induction"]}))
    assert (one.get_title(), other.get_title()) == ("copying", "induction")


def test_tokens_label_positions_and_sources():
    tokens = ["The", " cat", "$x$", "\n"]
    labels = {"source": list("abcd")}
    figure = heat_map(np.eye(4), ("position", "source"), tokens=tokens, labels=labels)
    [axes] = panels(figure)
    assert ticks(axes.yaxis) == ["The", "·cat", "$x$", r"\n"]
    assert ticks(axes.xaxis) == ticks(axes.yaxis)  # tokens take precedence
    figure.canvas.draw()  # "$x$" is not a formula
    named = heat_map(np.ones(2), ("component",), labels={"component": ["embed", "head 0.1"]})
    assert ticks(panels(named)[0].xaxis) == ["embed", "head 0.1"]


def test_long_axes_have_a_few_ticks_at_the_right_indices():
    [axes] = panels(heat_map(np.zeros((2, 100)), ("layer", "position")))
    places, texts = axes.get_xticks().tolist(), ticks(axes.xaxis)
    assert len(places) <= MOST_TICKS
    assert texts == [str(place) for place in places]


def test_a_path_map_names_writers_and_readers():
    paths = np.full((2, 3, 2, 1), np.nan)  # three query heads share a key head
    paths[0, 2, 1, 0] = 0.5
    [axes] = panels(path_map(jnp.asarray(paths, jnp.bfloat16), title="K"))
    shown = axes.images[0].get_array()
    assert shown.shape == (6, 2)
    assert shown[ticks(axes.yaxis).index("0.2"), ticks(axes.xaxis).index("1.0")] == 0.5
    assert shown.count() == 1  # all others are grey
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("writer", "reader")


@pytest.mark.parametrize(
    ("values", "options", "named"),
    [
        (np.zeros((1, 2, 3, 4)), {}, ("values", "(1, 2, 3, 4)", 3)),
        (np.float64(1.0), {}, ("values", "()", 1)),
        (np.zeros((2, 3)), {"by": ("layer",)}, ("by=('layer',)", "(2, 3)")),
        (np.zeros((2, 3)), {"by": ("head", "head")}, ("by=('head', 'head')", "(2, 3)")),
        (np.zeros((2, 0)), {}, ("values", "(2, 0)")),
        (np.zeros((2, 2), complex), {}, ("values", "complex128", "np.abs")),
        (np.zeros((2, 3)), {"labels": {"head": ["a"]}}, ("labels", 1, 3, "head")),
        (np.zeros((2, 3)), {"labels": {"neuron": ["a"]}}, ("labels", "neuron", "layer", "head")),
        (np.zeros((2, 3)), {"by": ("layer", "position"), "tokens": ["a"]}, (1, 3, "position")),
        (np.eye(3), {"tokens": ["a"] * 3}, ("tokens", "position", "source", "layer", "head")),
    ],
)
def test_wrong_arguments_are_refused(values: Any, options: dict[str, Any], named: tuple):
    with raises(ValueError, *named):
        heat_map(np.asarray(values), **options)


def test_a_path_map_takes_only_pairs_of_heads():
    for shape in ((2, 2), (2, 2, 3, 2)):
        with raises(ValueError, "values", shape, "[layer, head, layer, head]"):
            path_map(np.zeros(shape))


def test_no_text_is_parsed_as_a_formula(tmp_path: Path):
    """Not in titles, labels, tokens or units."""
    words: dict[str, Any] = {"tokens": ["$$", "$x$"], "title": "$^$", "unit": "$^$"}
    figure = heat_map(np.ones((2, 2, 2)), ("position", "$^$", "head"), **words)
    figure.savefig(tmp_path / "map.png")
    assert [panel.get_title() for panel in panels(figure)] == ["position $$", "position $x$"]


@pytest.mark.processes
def test_a_figure_can_be_saved_and_pyplot_is_not_used(tmp_path: Path):
    code = (
        "import sys, numpy, jaxformer.interp.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.heat_map(numpy.eye(3)).savefig({str(tmp_path / 'map.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
