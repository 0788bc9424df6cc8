"""Between the axes of a foreign tensor and those of our arrays."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

Tensor = Shaped[np.ndarray, "..."]


def foreign_shape(layout: str, sizes: Mapping[str, int], places: int) -> tuple[int, ...]:
    """The shape of a tensor of this layout that holds so many of our arrays.

    >>> foreign_shape("d *.n.h", {"d": 8, "n": 2, "h": 4}, 3)
    (8, 24)
    """
    sizes = {**sizes, "*": places}
    return tuple(math.prod(sizes[letter[0]] for letter in axis) for axis in _axes(layout))


def to_ours(
    tensor: Tensor, layout: str, axes: str, sizes: Mapping[str, int], places: int
) -> list[Tensor]:
    """Each of our arrays that a tensor holds, with our axes: a view where numpy can give one.

    >>> [part.tolist() for part in to_ours(np.arange(4), "*.h", "h", {"h": 2}, 2)]
    [[0, 1], [2, 3]]
    """
    letters, shape = _split(layout, sizes, places)
    tensor = tensor.reshape(shape)
    order = ["*", *_ours(axes, letters)]
    if "*" not in letters:
        tensor, letters = tensor[None], ["*", *letters]
    tensor = tensor.transpose([letters.index(letter) for letter in order])
    whole = tuple(sizes[axis] for axis in axes.split())
    return [part.reshape(whole) for part in tensor]


def to_theirs(arrays: Sequence[Tensor], layout: str, axes: str, sizes: Mapping[str, int]) -> Tensor:
    """The tensor that holds these arrays: what `to_ours` takes apart.

    >>> to_theirs([np.array([0, 1]), np.array([2, 3])], "h.*", "h", {"h": 2}).tolist()
    [0, 2, 1, 3]
    """
    letters, _ = _split(layout, sizes, len(arrays))
    own = _ours(axes, letters)
    halves = {**sizes, "2": 2, "i": sizes.get("h", 2) // 2}
    stack = np.stack([array.reshape([halves[letter] for letter in own]) for array in arrays])
    if "*" not in letters:
        letters = ["*", *letters]
    order = ["*", *own]
    stack = stack.transpose([order.index(letter) for letter in letters])
    return np.ascontiguousarray(stack).reshape(foreign_shape(layout, sizes, len(arrays)))


def _axes(layout: str) -> list[list[str]]:
    return [axis.split(".") for axis in layout.split()]


def _split(layout: str, sizes: Mapping[str, int], places: int) -> tuple[list[str], tuple[int, ...]]:
    """The letters of a tensor with every axis apart, and their sizes; `h~` is pairs of two."""
    letters: list[str] = []
    for axis in _axes(layout):
        for letter in axis:
            letters += ["i", "2"] if letter == "h~" else [letter]
    known = {**sizes, "*": places, "2": 2, "i": sizes.get("h", 2) // 2}
    return letters, tuple(known[letter] for letter in letters)


def _ours(axes: str, letters: list[str]) -> list[str]:
    """Our axes, where a head's width may be two halves."""
    own: list[str] = []
    for letter in axes.split():
        own += ["2", "i"] if letter == "h" and "i" in letters else [letter]
    return own
