"""Heat maps of what the other files of interp compute: their axes are layers, heads, positions or other parts.

Each function returns a new matplotlib Figure and does not use pyplot. A notebook shows it as the last value of a cell,
after `%matplotlib inline`; elsewhere use `figure.savefig("map.png")`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Shaped

MOST_TICKS = 24
PANELS_PER_ROW = 4


def heat_map(
    values: Shaped[Array | np.ndarray, "..."],
    by: Sequence[str] = ("layer", "head"),
    *,
    title: str = "",
    unit: str = "",
    tokens: Sequence[str] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Draw a heat map of one to three axes; with three, there is a panel for each index of the first.

    Colours run from blue (negative) through white (0) to red, with the same symmetric range in all panels. Values that
    are not finite are grey.

    Args:
        values: one axis for each name in `by`; the last two run from top to bottom and from left to right.
        by: names of the axes, as in `patch_sweep` or any others.
        title: above the figure.
        unit: of the values, beside the colour bar.
        tokens: texts of the tokens, instead of numbers, along "position" and "source".
        labels: texts along other axes, by name: {"component": component_labels(...)}; for panels they are the titles.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: other than one to three axes, an axis without a name, empty or complex values, the wrong number of
            labels or tokens, labels or tokens for an axis that `by` lacks.

    >>> heat_map(np.eye(4), ("layer", "head"), title="induction score").axes[0].get_xlabel()
    'head'
    """
    array, by = _real(values), tuple(by)
    if array.ndim not in (1, 2, 3):
        raise ValueError(
            f"values has shape {array.shape}, but a heat map has 1 to 3 axes; index some axes or take a mean"
        )
    if len(set(by)) != array.ndim:
        raise ValueError(
            f"by={by} names {len(set(by))} axes, but values of shape {array.shape} has {array.ndim}; name each of them"
        )
    texts = _texts(dict(zip(by, array.shape, strict=True)), tokens, labels)
    if array.ndim == 1:
        array, by, texts = array[None], ("", *by), {"": [""], **texts}
    panels = array[None] if array.ndim == 2 else array
    prefix = "" if by[0] in (labels or {}) else f"{by[0]} "
    titles = [""] if array.ndim == 2 else [prefix + text for text in texts[by[0]]]
    rows, columns = by[-2:]
    return _draw(panels, titles, (rows, texts[rows]), (columns, texts[columns]), title, unit)


def path_map(values: Shaped[Array | np.ndarray, "..."], *, title: str = "", unit: str = "") -> Any:
    """Draw a heat map of `path_patch` or `composition_scores`: a row for each writer, a column for each reader.

    Heads are labelled layer.head, in the order of layers. Pairs without a path are NaN, drawn in grey, for
    `path_patch`, and 0, drawn in white, for `composition_scores`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: axes other than [layer, head, layer, head]; empty or complex values.

    >>> figure = path_map(np.zeros((2, 3, 2, 3)))
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['0.0', '0.1', '0.2', '1.0', '1.1', '1.2']
    """
    array = _real(values)
    if array.ndim != 4 or array.shape[0] != array.shape[2]:
        raise ValueError(
            f"values has shape {array.shape}; give [layer, head, layer, head], as path_patch returns"
        )
    layers, writers, _, readers = array.shape
    names = [[f"{l}.{h}" for l in range(layers) for h in range(n)] for n in (writers, readers)]  # noqa: E741
    flat = array.reshape(1, layers * writers, layers * readers)
    return _draw(flat, [""], ("writer", names[0]), ("reader", names[1]), title, unit)


def _draw(
    panels: np.ndarray,
    titles: Sequence[str],
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    title: str,
    unit: str,
) -> Any:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    across, (_, height, width) = min(len(panels), PANELS_PER_ROW), panels.shape
    down = -(-len(panels) // across)
    size = [np.clip(0.3 * n, 1, 8) + 0.8 for n in (width, height)]
    figure = Figure((across * size[0] + 1.2, down * size[1] + 0.5), dpi=110, layout="constrained")
    subplots: Any = figure.subplots(down, across, squeeze=False)
    finite = np.abs(panels[np.isfinite(panels)])
    top = finite.max(initial=0.0) or 1.0
    colours = colormaps["RdBu_r"].with_extremes(bad="lightgrey")
    masked = np.ma.masked_invalid(panels)
    for axes, panel, name in zip(subplots.flat, masked, titles, strict=False):
        axes.imshow(panel, cmap=colours, vmin=-top, vmax=top, aspect="auto", interpolation="none")
        axes.set_xticks(*_ticks(columns[1]), rotation=90 * _long(columns[1]), parse_math=False)
        axes.set_yticks(*_ticks(rows[1]), parse_math=False)
        axes.set_xlabel(columns[0], parse_math=False)
        axes.set_ylabel(rows[0], parse_math=False)
        axes.set_title(name, parse_math=False)
    for axes in subplots.flat[len(panels) :]:
        axes.set_axis_off()
    bar = figure.colorbar(subplots[0, 0].images[0], ax=subplots)
    bar.ax.set_ylabel(unit, parse_math=False)
    figure.suptitle(title, parse_math=False)
    return figure


def _real(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if np.iscomplexobj(array):
        raise ValueError(f"values is {array.dtype}; give its real part or its np.abs")
    if not array.size:
        raise ValueError(f"values has shape {array.shape}, which is empty; give at least one value")
    return array.astype(np.float64)


def _texts(
    sizes: Mapping[str, int],
    tokens: Sequence[str] | None,
    labels: Mapping[str, Sequence[str]] | None,
) -> dict[str, list[str]]:
    """Return the labels along each axis: numbers unless tokens or labels are given."""
    given = dict(labels or {})
    if tokens is not None:
        along = [name for name in ("position", "source") if name in sizes]
        if not along:
            raise ValueError(
                f"tokens belong to position or source, but the axes are {', '.join(sizes)}"
            )
        given |= dict.fromkeys(along, tokens)
    for name, texts in given.items():
        if name not in sizes:
            raise ValueError(f"labels names {name!r}, but the axes are {', '.join(sizes)}")
        if len(texts) != sizes[name]:
            raise ValueError(
                f"{len(texts)} labels do not fit {name!r}, which has length {sizes[name]}; give one for each index"
            )
    numbers = {name: [str(index) for index in range(size)] for name, size in sizes.items()}
    return numbers | {name: [_visible(text) for text in texts] for name, texts in given.items()}


def _visible(text: str) -> str:
    """Write a line break as an escape, and leading and trailing spaces as dots."""
    inner = text.strip(" ")
    if not inner:
        return "·" * len(text)
    before, after = text.split(inner, 1) if inner != text else ("", "")
    return "·" * len(before) + repr(inner)[1:-1] + "·" * len(after)


def _ticks(texts: Sequence[str]) -> tuple[list[int], list[str]]:
    step = -(-len(texts) // MOST_TICKS)
    return list(range(0, len(texts), step)), list(texts[::step])


def _long(texts: Sequence[str]) -> bool:
    return max(map(len, texts)) > 2
