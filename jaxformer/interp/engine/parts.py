"""Parts of a site's value, by names: which position, head, source or neuron."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxformer.model.sites import AXES, WHOLE

LETTERS = {"position": "t", "source": "s", "head": "nk", "neuron": "f"}
"""What an index may name, and the letters of the axes that it can be along."""

NAMES = {"layer": "l"} | LETTERS
"""What one may take a site's activations apart by."""

Index = Mapping[str, Any]
"""Where to act: names of `LETTERS` to whole numbers, or to one-axis arrays of them; any may be traced."""


def checked(site: str, index: Any) -> dict[str, Any]:
    """An index, its names and types held to what a site has.

    Raises:
        ValueError: no mapping, a name without an axis, or what is no whole number.
    """
    if index is not None and not isinstance(index, Mapping):
        raise ValueError(
            f'index={index!r} must name what it is of, as {{"position": 3}}; None: all'
        )
    for name, chosen in (index or {}).items():
        if site in AXES:
            axis_of(site, name)
        if not whole_numbers(chosen, 1):
            raise ValueError(
                f"{name}={chosen!r} must be a whole number, or a one-axis array of them"
            )
    return dict(index or {})


def part(site: str, shape: tuple[int, ...], index: Index) -> Bool[Array, "..."]:
    """Where an index is, as a mask that broadcasts to a site's value of this shape.

    Raises:
        ValueError: an index out of range.

    >>> part("z", (3, 2, 4), {"head": 1}).ravel()
    Array([False,  True], dtype=bool)
    """
    mask: Any = jnp.ones((1,) * len(shape), bool)
    for name, chosen in index.items():
        axis = axis_of(site, name)
        for number in np.ravel(concrete(chosen)):
            if not 0 <= number < shape[axis]:
                raise ValueError(
                    f"{name}={number} is out of range: {site} has {shape[axis]}, numbered from 0"
                )
        along = [1] * len(shape)
        along[axis] = -1
        places = jnp.arange(shape[axis], dtype=jnp.int32)
        chosen = jnp.asarray(chosen).astype(jnp.int32).reshape(-1, 1)
        mask = mask & (places == chosen).any(axis=0).reshape(along)
    return mask


def axis_of(site: str, name: str) -> int:
    """The axis of a site's value, as an edit receives it, that a name of `LETTERS` stands for.

    Raises:
        ValueError: there is none.

    >>> axis_of("pattern", "source")
    2
    """
    return _named(site, name, AXES[site].split(), LETTERS)


def letters_of(site: str) -> list[str]:
    """The axes of a site's activations, where layers are stacked in front."""
    return ([] if site in WHOLE else ["l"]) + AXES[site].split()


def axes_by(site: str, by: Sequence[str]) -> list[int]:
    """The axes of a site's activations that names of `NAMES` stand for.

    Raises:
        ValueError: a name that the site has no axis for, or one named twice; one string.

    >>> axes_by("z", ("head", "layer"))
    [2, 0]
    """
    if isinstance(by, str):
        raise ValueError(f"by={by!r} is one string; give a tuple of names: ({by!r},)")
    letters = letters_of(site)
    for name in by:
        if list(by).count(name) > 1:
            raise ValueError(f"by names {name!r} twice")
        if name == "layer" and site in WHOLE:
            raise ValueError(f"{site} belongs to no layer; leave 'layer' out of by={tuple(by)}")
    return [_named(site, name, letters, NAMES) for name in by]


def _named(site: str, name: str, letters: list[str], names: Mapping[str, str]) -> int:
    for axis, letter in enumerate(letters):
        if letter in names.get(name, ""):
            return axis
    there = ", ".join(name for name, own in names.items() if set(letters) & set(own))
    raise ValueError(
        f"{site} [{AXES[site]}] has no {name!r}; "
        + (f"choose from {there}" if there else "it has no parts")
    )


def whole_numbers(numbers: Any, most_axes: int) -> bool:
    """Whether this is a whole number, or where it may have axes an array of them; it may be traced."""
    if isinstance(numbers, bool | list | tuple | str) or numbers is None:
        return False
    try:
        integer = jnp.issubdtype(jnp.result_type(numbers), jnp.integer)
    except TypeError:
        return False
    return integer and jnp.ndim(numbers) <= most_axes


def concrete(numbers: Any) -> Int[np.ndarray, "..."]:
    """The numbers, if they can be looked at; none of traced ones, or of None."""
    hidden = numbers is None or isinstance(numbers, jax.core.Tracer)
    return np.zeros(0, int) if hidden else np.asarray(numbers)
