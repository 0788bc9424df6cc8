"""The axes of a site's value, by name, and masks for a position, head, source or neuron."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxformer.sites import AXES, MODEL_SITES

LETTERS = {"position": "t", "source": "s", "head": "nk", "neuron": "f"}
"""The names in an index, and the letters of the axes that each may stand for."""

NAMES = {"layer": "l"} | LETTERS
"""The names in `by`, which also select layers."""

Index = Mapping[str, Any]
"""The part of a value to change: names of `LETTERS` to integers or one-axis arrays of them, which may be traced."""


def checked(site: str, index: Any) -> dict[str, Any]:
    """Check the names and types of an index for a site.

    Raises:
        ValueError: not a mapping, a name that the site has no axis for, or a value that is not an integer.
    """
    if index is not None and not isinstance(index, Mapping):
        raise ValueError(
            f'index={index!r} must be a mapping from names, such as {{"position": 3}}, or None for everything'
        )
    for name, chosen in (index or {}).items():
        if site in AXES:
            axis_of(site, name)
        if not are_integers(chosen, max_axes=1):
            raise ValueError(f"{name}={chosen!r} must be an integer, or a one-axis array of them")
        if not jnp.size(chosen):
            raise ValueError(f"{name}={chosen!r} names nothing; leave it out for everything")
        if (concrete(chosen) < 0).any():
            raise ValueError(f"{name}={chosen!r} must be at least 0; numbers count from the start")
    return {name: python_number(chosen) for name, chosen in (index or {}).items()}


def python_number(number: Any, kind: type = int) -> Any:
    """Return a scalar of Python or NumPy as a Python number, so that all of them share a compiled program."""
    scalar = isinstance(number, np.generic | int | float) and not isinstance(number, bool)
    return kind(number) if scalar and not np.iscomplexobj(number) else number


def part(site: str, shape: tuple[int, ...], index: Index) -> Bool[Array, "..."]:
    """Return the mask of an index, which broadcasts to a site's value of this shape.

    Raises:
        ValueError: an index out of range.

    >>> part("z", (3, 2, 4), {"head": 1}).ravel()
    Array([False,  True], dtype=bool)
    """
    check_index(site, shape, index)
    mask: Any = jnp.ones((1,) * len(shape), bool)
    for name, chosen in index.items():
        axis = axis_of(site, name)
        along = [1] * len(shape)
        along[axis] = -1
        numbers = jnp.arange(shape[axis], dtype=jnp.int32)
        chosen = jnp.asarray(chosen).astype(jnp.int32).reshape(-1, 1)
        mask = mask & (numbers == chosen).any(axis=0).reshape(along)
    return mask


def check_index(site: str, shape: tuple[int, ...], index: Index) -> None:
    """Refuse an index out of range for a site's value of this shape. A traced index cannot be checked.

    Raises:
        ValueError: naming the number and the size of its axis.
    """
    for name, chosen in index.items():
        size = shape[axis_of(site, name)]
        for number in np.ravel(concrete(chosen)):
            if not 0 <= number < size:
                raise ValueError(
                    f"{name}={number} is out of range: {site} has {size}, numbered from 0"
                )


def axis_of(site: str, name: str) -> int:
    """Return the axis that a name of `LETTERS` stands for, in a site's value as an edit receives it.

    Raises:
        ValueError: the site has no such axis.

    >>> axis_of("pattern", "source")
    2
    """
    return _named(site, name, AXES[site].split(), LETTERS)


def letters_of(site: str) -> list[str]:
    """Return the letters of the axes of a site's activations, with layers stacked in front."""
    return ([] if site in MODEL_SITES else ["l"]) + AXES[site].split()


def axes_by(site: str, by: Sequence[str]) -> list[int]:
    """Return the axes that names of `NAMES` stand for, in a site's activations.

    Raises:
        ValueError: a name that the site has no axis for, or that occurs twice; a string instead of names.

    >>> axes_by("z", ("head", "layer"))
    [2, 0]
    """
    if isinstance(by, str):
        raise ValueError(f"by={by!r} is one string; give a tuple of names: ({by!r},)")
    letters = letters_of(site)
    for name in by:
        if list(by).count(name) > 1:
            raise ValueError(f"by={tuple(by)} names {name!r} twice")
        if name == "layer" and site in MODEL_SITES:
            raise ValueError(f"{site} belongs to no layer; leave 'layer' out of by={tuple(by)}")
    return [_named(site, name, letters, NAMES) for name in by]


def _named(site: str, name: str, letters: list[str], names: Mapping[str, str]) -> int:
    for axis, letter in enumerate(letters):
        if letter in names.get(name, ""):
            return axis
    there = ", ".join(name for name, own in names.items() if set(letters) & set(own))
    raise ValueError(
        f"{site} [{AXES[site]}] has no {name!r}; "
        + (f"choose from {there}" if there else "it has no named axes")
    )


def are_integers(numbers: Any, max_axes: int) -> bool:
    """Whether this is an integer, or an array of integers with at most max_axes axes; it may be traced."""
    if isinstance(numbers, bool | list | tuple | str) or numbers is None:
        return False
    try:
        integer = jnp.issubdtype(jnp.result_type(numbers), jnp.integer)
    except TypeError:
        return False
    return integer and jnp.ndim(numbers) <= max_axes


def concrete(numbers: Any) -> Int[np.ndarray, "..."]:
    """Return the numbers if their values are known; an empty array if they are traced or None."""
    unknown = numbers is None or isinstance(numbers, jax.core.Tracer)
    return np.zeros(0, int) if unknown else np.asarray(numbers)
