"""The classes and functions of edits; `jaxformer.interp.edit` builds edits from them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Shaped

from jaxformer.config import Compute, Config
from jaxformer.edits import NUMBERS, check_capture, check_edit, check_layer, in_layer
from jaxformer.interp.engine.axes import (
    Index,
    are_integers,
    check_index,
    concrete,
    part,
    python_number,
)
from jaxformer.sites import AXES, LOGIT_SITES, MODEL_SITES, Layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class At:
    """An edit of one site, in one layer or (None) in every layer; `change` has the arguments of an edit."""

    site: str = dataclasses.field(metadata={"static": True})
    layer: Any
    change: Partial

    def __call__(self, site: str, layer: Layer, value: Shaped[Array, "..."]) -> Any:
        """Return the edited value."""
        if site != self.site:
            return value
        changed = self.change(site, layer, value)
        return changed if self.layer is None else in_layer(self.layer, layer, changed, value)

    @property
    def is_data(self) -> bool:
        """Whether it holds only numbers, and a function of the caller's only in a `jax.tree_util.Partial`."""
        numbers = (isinstance(leaf, NUMBERS) for leaf in jax.tree.leaves((self.layer, self.change)))
        return self.change.func is not of_function and all(numbers)

    def check(self, config: Config, compute: Compute, lengths: Mapping[str, int]) -> None:
        """Refuse a pass that lacks the site, the layer or a part of the index.

        Raises:
            ValueError: naming the site, layer or index.
        """
        check_capture((self.site,), config, compute)
        if np.ndim(self.layer):
            raise ValueError(
                f"this edit of {self.site} holds {np.shape(self.layer)} layers, as jax.vmap returns it; "
                "run it inside jax.vmap, or give one layer"
            )
        for layer in np.ravel(concrete(self.layer)).tolist() or [None]:
            check_layer(self.site, layer, config)
        if self.change.func in (put, add, put_own):
            sizes = {**config.sizes, **lengths}
            if self.site in LOGIT_SITES:
                sizes |= {"t": lengths["r"]}
            shape = tuple(sizes.get(letter, 1) for letter in AXES[self.site].split())
            check_index(self.site, shape, self.change.args[0])
        if self.change.func is put_own:
            shape = jnp.shape(self.change.args[1])
            if shape[:1] != (config.n_layers,):
                raise ValueError(
                    f"values of shape {shape} do not fit {config.n_layers} layers; give one value for each"
                )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Several edits, applied one after another."""

    edits: tuple[Any, ...]

    def __call__(self, site: str, layer: Layer, value: Shaped[Array, "..."]) -> Any:
        """Return the value after all edits."""
        for edit in self.edits:
            value = edit(site, layer, value)
        return value

    def check(self, config: Config, compute: Compute, lengths: Mapping[str, int]) -> None:
        """Refuse a pass that any of the edits refuses."""
        for edit in self.edits:
            check_edit(edit, config, compute, lengths)


def acting(site: str, layer: Any, change: Partial) -> At:
    """Return the edit that makes a change at a site, in a layer.

    Raises:
        ValueError: an unknown site, a layer for a site without layers, a layer that is not an integer.
    """
    if site not in AXES:
        raise ValueError(f"unknown site {site!r}; the sites are {', '.join(AXES)}")
    if layer is not None:
        if site in MODEL_SITES:
            raise ValueError(f"{site} belongs to no layer; give layer=None, not {layer!r}")
        if not are_integers(layer, max_axes=0):
            raise ValueError(f"layer={layer!r} must be an integer, or None for every layer")
    return At(site, python_number(layer), change)


def of_value(fn: Callable[[Any], Any], site: str, layer: Layer, value: Array) -> Any:
    """Apply the function of a `jax.tree_util.Partial` to the value."""
    del site, layer
    return fn(value)


def of_function(fn: Callable[[Any], Any], site: str, layer: Layer, value: Array) -> Any:
    """Apply another function, which may close over what changes."""
    return of_value(fn, site, layer, value)


def put(index: Index, new: Any, site: str, layer: Layer, value: Array) -> Array:
    """Replace a part of the value by that of another, which is broadcast."""
    del layer
    new = _fitting(new, site, value)
    return jnp.where(part(site, value.shape, index), new, value)


def add(
    index: Index, direction: Any, strength: Any, site: str, layer: Layer, value: Array
) -> Array:
    """Add strength · direction to a part of the value."""
    del layer
    change = jnp.asarray(strength).astype(value.dtype) * _fitting(direction, site, value)
    return jnp.where(part(site, value.shape, index), value + change, value)


def put_own(index: Index, stacked: Any, site: str, layer: Layer, value: Array) -> Array:
    """Replace a part of the value by that of this layer, from a stack of all layers."""
    own = jnp.asarray(stacked)[layer]
    if own.shape != value.shape:  # not broadcast: a run of one token is not a run of many
        raise _unfitting(own, site, value)
    return put(index, own, site, layer, value)


def _fitting(new: Any, site: str, value: Array) -> Array:
    """Cast and broadcast a new value to the dtype and shape of the site's value."""
    new = jnp.asarray(new)
    sizes = zip(new.shape[::-1], value.shape[::-1], strict=False)
    fits = new.ndim <= value.ndim and all(size in (1, own) for size, own in sizes)
    if not fits or jnp.iscomplexobj(new):
        raise _unfitting(new, site, value)
    return jnp.broadcast_to(new.astype(value.dtype), value.shape)


def _unfitting(new: Array, site: str, value: Array) -> ValueError:
    return ValueError(
        f"a value of shape {new.shape} and dtype {new.dtype} does not fit {site}, "
        f"which holds {value.shape} [{AXES[site]}] of {value.dtype}"
    )
