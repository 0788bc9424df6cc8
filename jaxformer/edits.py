"""Edits and captures as they are given: their checks, and functions that edit.

An edit is a function from (site, layer, value) to the value that the pass continues with. It is data if it is a pytree
of numbers, as those of `jaxformer.interp.edit` are: such edits of one structure share a compiled program.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import Compute, Config
from jaxformer.sites import MODEL_SITES, SITES, Edit, Layer, available_sites

NUMBERS = (jax.Array, np.ndarray, np.generic, int, float)

READS_A_TRACED_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def is_data(edit: Edit) -> bool:
    """Whether an edit is a pytree of numbers; a part that has an attribute `is_data` decides for itself."""
    if isinstance(edit, Mapping):
        return False
    leaves = jax.tree.leaves(edit, is_leaf=lambda node: hasattr(node, "is_data"))
    return all(getattr(leaf, "is_data", isinstance(leaf, NUMBERS)) for leaf in leaves)


def check_numbers(name: str, values: Any) -> None:
    """Refuse what holds anything but numbers, or nothing."""
    leaves = jax.tree.leaves(values)
    if not leaves or not all(isinstance(leaf, (*NUMBERS, complex)) for leaf in leaves):
        raise ValueError(f"{name}={values!r} is not an array of numbers")


class BySite:
    """A mapping from sites, or from (site, layer), to functions of the value, as one edit."""

    def __init__(self, functions: Mapping[Any, Any]):
        places = {key if isinstance(key, tuple) else (key, None): fn for key, fn in functions.items()}  # fmt: skip
        self.functions: dict[Any, Callable[[Any], Any]] = places

    def __call__(self, site: str, layer: Layer, value: Any) -> Any:
        """Return the value after all functions of this site."""
        for (name, chosen), function in self.functions.items():
            if name == site and value is not None:
                new = function(value)
                value = new if chosen is None else in_layer(chosen, layer, new, value)
        return value

    def check(self, config: Config, compute: Compute, lengths: Mapping[str, int]) -> None:
        """Refuse a key that is not a place of this model, and a value that is not a function of an array."""
        del lengths
        for place, function in self.functions.items():
            if len(place) != 2:
                raise ValueError(f"edit has the key {place!r}; give a site, or (site, layer)")
            site, layer = place
            check_capture((site,), config, compute)
            check_layer(site, layer, config)
            if not callable(function) or hasattr(function, "check"):
                raise ValueError(f"edit[{place!r}]={function!r} is not a function of the site's value")  # fmt: skip


def in_layer(chosen: Any, layer: Layer, new: Any, value: Any) -> Any:
    """Return the new value in the chosen layer, and the old one elsewhere."""
    if new is value or not fits(new, value):
        return new
    return jnp.where(layer == jnp.asarray(chosen, jnp.int32), new.astype(value.dtype), value)


def fits(new: Any, value: Any) -> bool:
    """Whether a new value can take the place of a site's value; the Tap refuses others."""
    shape = getattr(new, "shape", None)  # a list may hold traced numbers
    return shape == value.shape and not jnp.iscomplexobj(new)


class Watched:
    """An edit that knows whether it has changed a value yet, and that explains JAX's errors about traced values."""

    def __init__(self, edit: Edit):
        self.edit = BySite(edit) if isinstance(edit, Mapping) else edit
        self.parts = [Watched(part) for part in getattr(edit, "edits", ())]  # of a chain
        self.acted = False

    def __call__(self, site: str, layer: Layer, value: Any) -> Any:
        """Return the value that the edit gives."""
        if self.parts:
            for part in self.parts:
                value = part(site, layer, value)
            return value
        try:
            new = self.edit(site, layer, value)
        except READS_A_TRACED_VALUE as error:
            raise ValueError(
                f"at site {site!r} the edit reads the value of a traced array, as `if layer == 1:` does. Layers and "
                "values are traced, so that one program serves all layers: write jnp.where(layer == 1, new, value), "
                f"or name the layer, as in edit={{({site!r}, 1): function_of_the_value}}"
            ) from error
        self.acted |= new is not value
        return new

    def check(self, config: Config, compute: Compute, lengths: Mapping[str, int]) -> None:
        """Check the edit that is watched."""
        check_edit(self.edit, config, compute, lengths)

    def check_acted(self) -> None:
        """Refuse an edit that has changed nothing, also as a part of a chain."""
        for part in self.parts:
            part.check_acted()
        if not self.acted and not self.parts:
            raise ValueError(
                "the edit returned every value unchanged; compare `site` with the name of a site that this model has "
                "(jaxformer.available_sites(config) lists them), and to look at values use capture"
            )


def check_capture(capture: Any, config: Config, compute: Compute) -> tuple[str, ...]:
    """Return the sites to capture, in their order in the pass; refuse one that the pass does not reach."""
    available = available_sites(config, compute)
    if isinstance(capture, str):
        if capture == "all":
            return available
        raise ValueError(f'capture={capture!r} is one string; give a tuple, ({capture!r},), or "all"')  # fmt: skip
    if not isinstance(capture, Iterable):
        raise ValueError(f'capture={capture!r} is not a tuple of names of sites, or "all"')
    capture = tuple(capture)
    for site in capture:
        if site not in available:
            why = f"this Config has no site {site!r}" if site in SITES else f"unknown site {site!r}"
            if site in available_sites(config):
                why = f"kernel={compute.kernel!r} never computes {site!r}; use kernel='einsum'"
            raise ValueError(f"{why}; the sites are {', '.join(available)}")
    return tuple(site for site in available if site in capture)


def check_edit(edit: Any, config: Config, compute: Compute, lengths: Mapping[str, int]) -> None:
    """Refuse an edit that would never act in this model; an object says so by its method `check`.

    `lengths` are the numbers of queries `t`, keys `s` and positions with logits `r` of the pass.
    """
    edit = BySite(edit) if isinstance(edit, Mapping) else edit
    if check := getattr(edit, "check", None):
        check(config, compute, lengths)
    elif not callable(edit):
        raise ValueError(
            f"edit={edit!r} is not an edit; give one of jaxformer.interp.edit, a function edit(site, layer, value), "
            "or a mapping such as {'z': function_of_the_value}"
        )


def check_layer(site: str, layer: Any, config: Config) -> None:
    """Refuse a layer that this model does not have, and any layer for a site that belongs to none."""
    if site in MODEL_SITES:
        if layer is not None:
            raise ValueError(f"{site} belongs to no layer; leave out layer={layer!r}")
    elif not config.n_layers:
        raise ValueError(f"no layer has a {site}: this model has n_layers=0")
    elif layer is not None and layer not in range(config.n_layers):
        raise ValueError(
            f"layer={layer!r} is out of range: this model has layers 0 to {config.n_layers - 1}"
        )
