"""Pictures of what interp finds: heat maps whose axes are layers, heads, positions, or whatever was swept over.

Each returns a matplotlib Figure of its own and leaves pyplot alone. A notebook shows it as a cell's last value,
once `%matplotlib inline` has been said in it; elsewhere `figure.savefig("map.png")`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Shaped

MOST_TICKS = 24
PANELS = 4
"""in a row"""


def heat_map(
    values: Shaped[Array | np.ndarray, "..."],
    by: Sequence[str] = ("layer", "head"),
    *,
    title: str = "",
    unit: str = "",
    tokens: Sequence[str] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """A heat map of one to three axes; of three, the first becomes a panel for each of its places.

    Colours run from blue, below 0, by white to red, as far on either side as the largest value, in all panels alike.
    What is no finite number is grey.

    Args:
        values: one axis for each name in `by`; the first of two from top to bottom, the second from left to right.
        by: what the axes are, in a `patch_sweep`'s words or any others.
        title: above it all.
        unit: of the values, beside the colours.
        tokens: their texts, in place of numbers along "position" and "source".
        labels: texts along other axes, by name: {"component": component_labels(...)}; panels have them as titles.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: other than one to three axes, an axis without a name or without length, complex values, labels
            of another number than an axis has places, labels or tokens of an axis that is not there.

    >>> heat_map(np.eye(4), ("layer", "head"), title="induction score").axes[0].get_xlabel()
    'head'
    """
    shown, by = _real(values), tuple(by)
    if shown.ndim not in (1, 2, 3):
        raise ValueError(
            f"values has shape {shown.shape}: a heat map has 1 to 3 axes; choose some by an index or take a mean"
        )
    if len(set(by)) != shown.ndim:
        raise ValueError(
            f"by={by} names {len(set(by))} axes, values of shape {shown.shape} has {shown.ndim}; name each of them"
        )
    texts = _texts(dict(zip(by, shown.shape, strict=True)), tokens, labels)
    if shown.ndim == 1:
        shown, by, texts = shown[None], ("", *by), {"": [""], **texts}
    panels = shown[None] if shown.ndim == 2 else shown
    numbered = "" if by[0] in (labels or {}) else f"{by[0]} "
    titles = [""] if shown.ndim == 2 else [numbered + text for text in texts[by[0]]]
    rows, columns = by[-2:]
    return _draw(panels, titles, (rows, texts[rows]), (columns, texts[columns]), title, unit)


def path_map(values: Shaped[Array | np.ndarray, "..."], *, title: str = "", unit: str = "") -> Any:
    """A heat map of `path_patch` or `composition_scores`: writers from top to bottom, readers from left to right.

    Heads are named layer.head, and those of one layer stand side by side. Pairs without a path are grey in a map of
    `path_patch`, where they are NaN, and white in one of `composition_scores`, where they are 0.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: other axes than those; complex values.

    >>> figure = path_map(np.zeros((2, 3, 2, 3)))
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['0.0', '0.1', '0.2', '1.0', '1.1', '1.2']
    """
    shown = _real(values)
    if shown.ndim != 4 or shown.shape[0] != shown.shape[2]:
        raise ValueError(
            f"values has shape {shown.shape}; give [layer, head, layer, head], as path_patch does"
        )
    layers, writers, _, readers = shown.shape
    names = [[f"{l}.{h}" for l in range(layers) for h in range(n)] for n in (writers, readers)]  # noqa: E741
    flat = shown.reshape(1, layers * writers, layers * readers)
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

    across, (_, height, width) = min(len(panels), PANELS), panels.shape
    down = -(-len(panels) // across)
    size = [np.clip(0.3 * n, 1, 8) + 0.8 for n in (width, height)]
    figure = Figure((across * size[0] + 1.2, down * size[1] + 0.5), dpi=110, layout="constrained")
    places: Any = figure.subplots(down, across, squeeze=False)
    finite = np.abs(panels[np.isfinite(panels)])
    most = finite.max(initial=0.0) or 1.0
    colours = colormaps["RdBu_r"].with_extremes(bad="lightgrey")
    shown = np.ma.masked_invalid(panels)
    for axes, panel, name in zip(places.flat, shown, titles, strict=False):
        axes.imshow(panel, cmap=colours, vmin=-most, vmax=most, aspect="auto", interpolation="none")
        axes.set_xticks(*_ticks(columns[1]), rotation=90 * _long(columns[1]), parse_math=False)
        axes.set_yticks(*_ticks(rows[1]), parse_math=False)
        axes.set_xlabel(columns[0], parse_math=False)
        axes.set_ylabel(rows[0], parse_math=False)
        axes.set_title(name, parse_math=False)
    for axes in places.flat[len(panels) :]:
        axes.set_axis_off()
    bar = figure.colorbar(places[0, 0].images[0], ax=places)
    bar.ax.set_ylabel(unit, parse_math=False)
    figure.suptitle(title, parse_math=False)
    return figure


def _real(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if np.iscomplexobj(array):
        raise ValueError(f"values is {array.dtype}; give its real part, or np.abs of it")
    if not array.size:
        raise ValueError(f"values has shape {array.shape}: there is nothing to draw")
    return array.astype(np.float64)


def _texts(
    sizes: Mapping[str, int],
    tokens: Sequence[str] | None,
    labels: Mapping[str, Sequence[str]] | None,
) -> dict[str, list[str]]:
    """What stands at each place of each axis: its number where nothing else was given."""
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
                f"{len(texts)} labels do not fit the {sizes[name]} places of {name!r}; give one for each"
            )
    numbers = {name: [str(place) for place in range(size)] for name, size in sizes.items()}
    return numbers | {name: [_visible(text) for text in texts] for name, texts in given.items()}


def _visible(text: str) -> str:
    """A line break written out; a space that begins or ends a token as a dot."""
    inner = text.strip(" ")
    if not inner:
        return "·" * len(text)
    before, after = text.split(inner, 1) if inner != text else ("", "")
    return "·" * len(before) + repr(inner)[1:-1] + "·" * len(after)


def _ticks(texts: Sequence[str]) -> tuple[list[int], list[str]]:
    every = -(-len(texts) // MOST_TICKS)
    return list(range(0, len(texts), every)), list(texts[::every])


def _long(texts: Sequence[str]) -> bool:
    return max(map(len, texts)) > 2
