"""Edits and captures as they are given: their checks, and functions that edit.

An edit is a function from (site, layer, value) to the value that the pass continues with. It is data if it is a pytree
of numbers, as those of `jaxformer.interp.edit` are: such edits of one structure share a compiled program.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import Compute, Config
from jaxformer.sites import MODEL_SITES, SITES, Edit, EditFunction, Layer, available_sites

READS_A_TRACED_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def is_data(edit: Edit) -> bool:
    """Whether an edit is a pytree of numbers; an object in it may say so itself, as `is_data`."""
    if isinstance(edit, Mapping):
        return False
    leaves = jax.tree.leaves(edit, is_leaf=lambda node: hasattr(node, "is_data"))
    number = (jax.Array, np.ndarray, np.generic, int, float)
    return all(getattr(leaf, "is_data", isinstance(leaf, number)) for leaf in leaves)


class Watched:
    """A function, or a mapping of them, as an edit that knows whether it has changed a value yet."""

    def __init__(self, edit: Edit):
        self.edit, self.acted = as_function(edit), False

    def __call__(self, site: str, layer: Layer, value: Any) -> Any:
        """Return the value that the edit gives; explain an error of JAX."""
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

    def check_acted(self) -> None:
        """Refuse an edit that has changed nothing."""
        if not self.acted:
            raise ValueError(
                "the edit returned every value unchanged; compare `site` with the name of a site that this model has "
                "(jaxformer.available_sites(config) lists them), and to look at values use capture"
            )


def as_function(edit: Edit) -> EditFunction:
    """Return an edit as a function of (site, layer, value)."""
    if not isinstance(edit, Mapping):
        return edit

    def by_site(site: str, layer: Layer, value: Any) -> Any:
        for key, function in edit.items():
            name, chosen = (key, None) if isinstance(key, str) else key
            if name == site:
                new = function(value)
                if chosen is not None and new is not value and np.shape(new) == value.shape:
                    new = jnp.where(layer == chosen, jnp.asarray(new).astype(value.dtype), value)
                value = new
        return value

    return by_site


def check_capture(capture: str | Iterable[str], config: Config, compute: Compute) -> tuple[str, ...]:  # fmt: skip
    """Return the names of the sites to capture; refuse one that this forward pass does not reach."""
    if not capture:
        return ()
    available = available_sites(config, compute)
    if isinstance(capture, str):
        if capture == "all":
            return available
        raise ValueError(
            f'capture={capture!r} is one string; give a tuple, ({capture!r},), or "all"'
        )
    for site in (capture := tuple(capture)):
        if site not in available:
            why = f"this Config has no site {site!r}" if site in SITES else f"unknown site {site!r}"
            if site in available_sites(config):
                why = f"kernel={compute.kernel!r} never computes {site!r}; use kernel='einsum'"
            raise ValueError(f"{why}; the sites are {', '.join(available)}")
    return capture


def check_edit(edit: Any, config: Config, compute: Compute, lengths: Mapping[str, int]) -> None:
    """Refuse an edit that would never act in this model: a mapping by its keys, an object by its method `check`.

    `lengths` are the numbers of queries `t`, keys `s` and positions with logits `r` of the pass.
    """
    if check := getattr(edit, "check", None):
        check(config, compute, lengths)
    elif isinstance(edit, Mapping):
        for key, function in edit.items():
            place: Any = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
            site, layer = place
            check_capture((site,), config, compute)
            check_layer(site, layer, config)
            if not callable(function):
                raise ValueError(
                    f"edit[{key!r}]={function!r} is not a function of the site's value"
                )
    elif not callable(edit):
        raise ValueError(
            f"edit={edit!r} is not an edit; give one of jaxformer.interp.edit, a function edit(site, layer, value), "
            "or a mapping such as {'z': function_of_the_value}"
        )


def check_layer(site: str, layer: int | None, config: Config) -> None:
    """Refuse a layer that this model does not have, and any layer for a site that belongs to none."""
    if site in MODEL_SITES:
        if layer is not None:
            raise ValueError(f"{site} belongs to no layer; leave out layer={layer!r}")
    elif not config.n_layers:
        raise ValueError(f"no layer has a {site}: this model has n_layers=0")
    elif layer is not None and layer not in range(config.n_layers):
        raise ValueError(
            f"layer={layer} is out of range: this model has layers 0 to {config.n_layers - 1}"
        )
