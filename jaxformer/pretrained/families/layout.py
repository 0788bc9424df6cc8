"""Conversion between the axes of a published model's tensors and those of jaxformer's parameters."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

Tensor = Shaped[np.ndarray, "..."]


def foreign_shape(layout: str, sizes: Mapping[str, int], places: int) -> tuple[int, ...]:
    """Return the shape of a tensor with this layout that holds this number of parameters.

    >>> foreign_shape("d *.n.h", {"d": 8, "n": 2, "h": 4}, 3)
    (8, 24)
    """
    sizes = {**sizes, "*": places}
    return tuple(math.prod(sizes[letter[0]] for letter in axis) for axis in _axes(layout))


def to_ours(
    tensor: Tensor, layout: str, axes: str, sizes: Mapping[str, int], places: int
) -> list[Tensor]:
    """Return the parameters in a tensor, each with jaxformer's axes, as views where numpy can.

    >>> [part.tolist() for part in to_ours(np.arange(4), "*.h", "h", {"h": 2}, 2)]
    [[0, 1], [2, 3]]
    """
    letters, shape = _split(layout, sizes, places)
    tensor = tensor.reshape(shape)
    order = ["*", *_split_head(axes, letters)]
    if "*" not in letters:
        tensor, letters = tensor[None], ["*", *letters]
    tensor = tensor.transpose([letters.index(letter) for letter in order])
    own_shape = tuple(sizes[axis] for axis in axes.split())
    return [part.reshape(own_shape) for part in tensor]


def to_theirs(arrays: Sequence[Tensor], layout: str, axes: str, sizes: Mapping[str, int]) -> Tensor:
    """Return the tensor that holds these parameters; the inverse of `to_ours`.

    >>> to_theirs([np.array([0, 1]), np.array([2, 3])], "h.*", "h", {"h": 2}).tolist()
    [0, 2, 1, 3]
    """
    letters, _ = _split(layout, sizes, len(arrays))
    own = _split_head(axes, letters)
    known = {**sizes, **_pair_sizes(sizes)}
    stack = np.stack([array.reshape([known[letter] for letter in own]) for array in arrays])
    if "*" not in letters:
        letters = ["*", *letters]
    order = ["*", *own]
    stack = stack.transpose([order.index(letter) for letter in letters])
    return np.ascontiguousarray(stack).reshape(foreign_shape(layout, sizes, len(arrays)))


def _axes(layout: str) -> list[list[str]]:
    return [axis.split(".") for axis in layout.split()]


def _split(layout: str, sizes: Mapping[str, int], places: int) -> tuple[list[str], tuple[int, ...]]:
    """Return the unmerged axes of a tensor and their sizes; `h~` becomes `pair half`."""
    letters: list[str] = []
    for axis in _axes(layout):
        for letter in axis:
            letters += ["pair", "half"] if letter == "h~" else [letter]
    known = {**sizes, "*": places, **_pair_sizes(sizes)}
    return letters, tuple(known[letter] for letter in letters)


def _pair_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    return {"half": 2, "pair": sizes.get("h", 2) // 2}


def _split_head(axes: str, letters: list[str]) -> list[str]:
    """Return a parameter's axes, with h as `half pair` where the tensor interleaves the halves."""
    own: list[str] = []
    for letter in axes.split():
        own += ["half", "pair"] if letter == "h" and "pair" in letters else [letter]
    return own
