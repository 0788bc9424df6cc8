"""Parts of a site's value, by names: which position, head, source or neuron."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxformer.sites import AXES

LETTERS = {"position": "t", "source": "s", "head": "nk", "neuron": "f"}
"""What an index may name, and the letters of the axes that it can be along."""

Index = Mapping[str, Any]
"""Where to act: names of `LETTERS` to whole numbers, or to one-axis arrays of them; any may be traced."""


def checked(site: str, index: Index | None) -> dict[str, Any]:
    """An index, its names and types held to what a site has.

    Raises:
        ValueError: a name without an axis, or what is no whole number.
    """
    for name, chosen in (index or {}).items():
        if site in AXES:
            axis_of(site, name)
        if not jnp.issubdtype(jnp.result_type(chosen), jnp.integer) or jnp.ndim(chosen) > 1:
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
    """The axis of a site's value that a name of `LETTERS` stands for.

    Raises:
        ValueError: there is none.

    >>> axis_of("pattern", "source")
    2
    """
    letters = AXES[site].split()
    for axis, letter in enumerate(letters):
        if letter in LETTERS.get(name, ""):
            return axis
    named = [name for name, own in LETTERS.items() if set(letters) & set(own)]
    raise ValueError(
        f"{site} [{' '.join(letters)}] has no {name!r}; choose from {', '.join(named)}"
    )


def concrete(numbers: Any) -> Int[np.ndarray, "..."]:
    """The numbers, if they can be looked at; none of traced ones."""
    return np.zeros(0, int) if isinstance(numbers, jax.core.Tracer) else np.asarray(numbers)
