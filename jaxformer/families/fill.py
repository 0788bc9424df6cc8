"""Foreign tensors into our arrays: all names and shapes are checked first, then one tensor is read at a time."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxformer.config import Config
from jaxformer.families.family import Family, Weight
from jaxformer.families.layout import Tensor, foreign_shape, to_ours
from jaxformer.formats import Source
from jaxformer.formats.source import FLOATS, copy_checked
from jaxformer.params import Params, specs
from jaxformer.spec import Spec, path_name

Put = Callable[[str, np.ndarray], Array]
"""Takes one of our arrays, by name, to where it is to live."""

SLAB = 2**22
"""Bytes of a tensor that are read at a time, if its rows are rows or columns of ours."""


class Wanted(NamedTuple):
    """A row of a family's table that this Config has tensors for."""

    weight: Weight
    specs: tuple[Spec, ...]  # of its places
    tensors: tuple[str, ...]  # of each layer, or the one

    @property
    def axes(self) -> str:
        """Of one layer's array, by letter."""
        return " ".join(axis for axis in self.specs[0].axes if axis != "l")


def wanted(family: Family, config: Config) -> list[Wanted]:
    """The tensors that a model of this Config has, by the names that they have with their head."""
    declared = {
        path_name(path): spec
        for path, spec in jax.tree_util.tree_leaves_with_path(
            specs(config), is_leaf=lambda node: isinstance(node, Spec)
        )
    }
    rows = []
    for weight in (*family.weights, Weight(family.head, "v d", ("W_U",))):
        held = [declared.pop(place) for place in weight.places if place in declared]
        if len(held) == len(weight.places):
            prefix = "" if weight.name == family.head else family.prefix
            layers = range(config.n_layers) if "{l}" in weight.name else range(1)
            names = tuple(prefix + weight.name.replace("{l}", str(layer)) for layer in layers)
            rows.append(Wanted(weight, tuple(held), names))
    if declared:
        raise ValueError(f"a {family.name} model has no {min(declared)}, which this Config has")
    return rows


def read_params(source: Source, family: Family, config: Config, dtype: Any, put: Put) -> Params:
    """Our parameters of a file's tensors, in `dtype`; with no more than a slab or one layer's tensor beside them.

    Raises:
        ValueError: a tensor that is missing, superfluous, of another shape, or no float; an unembedding that is not
            the embedding where the two are tied.
    """
    rows = wanted(family, config)
    names = check(source, family, config, rows)
    if config.tied and family.head in names:
        _check_tied(source, names[_embedding(rows)], names[family.head])
    found: dict[str, Array] = {}
    for row in rows:
        for place, array in _arrays(source, row, names, config, dtype):
            found[place] = put(place, array)
            del array
    return jax.tree_util.tree_map_with_path(
        lambda path, _: found[path_name(path)],
        specs(config),
        is_leaf=lambda node: isinstance(node, Spec),
    )


def own_dtype(source: Source, family: Family, config: Config) -> str:
    """The widest float of a model's matrices in its file: float32 if two 16-bit kinds are mixed.

    Biases and norms do not count, which files keep wider, nor what is no parameter of the model.

    Raises:
        ValueError: as `check`.
    """
    rows = wanted(family, config)
    names = check(source, family, config, rows)
    held = [source.tensors[names[name]] for row in rows for name in row.tensors]
    found = {tensor.dtype for tensor in held if len(tensor.shape) > 1}
    if found == set(FLOATS[:2]):
        return "float32"
    return str(max(found, key=FLOATS.index))


def check(source: Source, family: Family, config: Config, rows: list[Wanted]) -> Mapping[str, str]:
    """The file's own name of every tensor, once all of them are there with the right shapes, and none besides.

    Raises:
        ValueError: naming the file and the first tensor that is not so.
    """
    names: dict[str, str] = {}
    for own in source.tensors:
        bare = own.removeprefix(family.prefix)
        if re.fullmatch(family.buffers, bare):
            continue
        own_head = own in (family.head, family.other_head)
        whole = family.head if own_head else family.prefix + bare
        if whole in names:
            raise ValueError(
                f"{source.path} holds both {names[whole]} and {own}, which are one tensor"
            )
        names[whole] = own
    embedding = _embedding(rows)
    if config.tied and embedding not in names and family.head in names:
        names[embedding] = names.pop(family.head)
    left = set(names) - ({family.head} if config.tied else set())
    for row in rows:
        shape = foreign_shape(row.weight.layout, config.sizes, len(row.specs))
        for name in row.tensors:
            if name not in names:
                raise ValueError(f"{source.path} lacks {name}, of shape {shape}")
            tensor = source.tensors[names[name]]
            if tensor.shape != shape:
                raise ValueError(
                    f"{tensor.file} holds {names[name]} of shape {tensor.shape}; its config asks for {shape}"
                )
            _check_float(tensor.dtype, f"{tensor.file} holds {names[name]}")
            left.discard(name)
    if left:
        extra = names[min(left)]
        raise ValueError(
            f"{source.tensors[extra].file} holds {extra}, which a {family.name} model of its config does not have"
        )
    return names


def _check_float(dtype: np.dtype, what: str) -> None:
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
        raise ValueError(
            f"{what} as {dtype}; jaxformer reads float16, bfloat16, float32 and float64"
        )


def _arrays(
    source: Source, row: Wanted, names: Mapping[str, str], config: Config, dtype: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one row, filled layer by layer and slab by slab."""
    arrays = [_aligned(spec.shape, dtype) for spec in row.specs]
    stacked = row.specs[0].axes[:1] == ("l",)
    layout, axes = row.weight.layout, row.axes.split()
    first = layout.split()[0]
    for layer, name in enumerate(row.tensors):
        into = [array[layer] if stacked else array for array in arrays]
        for slab, tensor in _slabs(source, names[name], whole=first not in axes):
            if row.weight.plus:
                tensor = tensor - np.asarray(row.weight.plus, tensor.dtype)
            sizes = {**config.sizes, first: len(tensor)}  # unless whole, one of our axes
            place = tuple(slab if axis == first else slice(None) for axis in axes)
            parts = to_ours(tensor, layout, row.axes, sizes, len(arrays))
            for array, part in zip(into, parts, strict=True):
                copy_checked(part, array[place], f"{source.path} holds {names[name]}")
    for place in row.weight.places:
        yield place, arrays.pop(0)


def _slabs(source: Source, name: str, *, whole: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """A tensor by some of its rows at a time, with where they are in it."""
    tensor = source.tensors[name]
    rows = tensor.shape[0]
    at_once = max(SLAB * rows // (math.prod(tensor.shape) * tensor.dtype.itemsize), 1)
    if whole or at_once >= rows:
        yield slice(0, rows), source.read(name)
        return
    for start in range(0, rows, at_once):
        stop = min(start + at_once, rows)
        yield slice(start, stop), source.read_rows(name, start, stop)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array that JAX can take over on CPU without a copy: it begins at a multiple of 64 bytes."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _check_tied(source: Source, embedding: str, head: str) -> None:
    """An unembedding that is kept beside the embedding that it is tied to must be the same."""
    shapes = {source.tensors[name].shape for name in (embedding, head)}
    if len(shapes) > 1 or not all(
        np.array_equal(one, source.read_rows(head, slab.start, slab.stop), equal_nan=True)
        for slab, one in _slabs(source, embedding)
    ):
        raise ValueError(
            f"{source.path} holds {head} that is not {embedding}, and its config says that the two are tied"
        )


def _embedding(rows: list[Wanted]) -> str:
    """The name of the tensor that holds the embedding alone."""
    return next(row.tensors[0] for row in rows if row.weight.places == ("W_E",))
