"""Foreign tensors into our arrays, one tensor at a time, or a slab of its rows."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxformer.model.params import Params, specs
from jaxformer.model.spec import is_spec, path_name
from jaxformer.pretrained.families.layout import Tensor, to_ours
from jaxformer.pretrained.families.plan import Plan, Wanted, embedding_of
from jaxformer.pretrained.formats import Source
from jaxformer.pretrained.formats.source import copy_checked

Put = Callable[[str, np.ndarray], Array]
"""Takes one of our arrays, by name, to where it is to live."""

SLAB = 2**22
"""Bytes of a tensor that are read at a time, if its rows are rows or columns of ours."""


def read_params(plan: Plan, dtype: Any, put: Put) -> Params:
    """Our parameters, in `dtype`; with no more than a slab or one layer's tensor beside them.

    Raises:
        ValueError: an unembedding that is not the embedding where the two are tied; numbers that the dtype has no
            room for.
    """
    if plan.config.tied and plan.family.head in plan.names:
        _check_tied(plan.source, plan.names[embedding_of(plan.rows)], plan.names[plan.family.head])
    found: dict[str, Array] = {}
    for row in plan.rows:
        for place, array in _arrays(plan, row, dtype):
            found[place] = put(place, array)
            del array
    return jax.tree_util.tree_map_with_path(
        lambda path, _: found[path_name(path)], specs(plan.config), is_leaf=is_spec
    )


def _arrays(plan: Plan, row: Wanted, dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one row, filled layer by layer and slab by slab."""
    source, names, sizes = plan.source, plan.names, plan.config.sizes
    arrays = [_aligned(spec.shape, dtype) for spec in row.specs]
    stacked = row.specs[0].axes[:1] == ("l",)
    layout, axes = row.weight.layout, row.axes.split()
    first = layout.split()[0]
    for layer, name in enumerate(row.tensors):
        into = [array[layer] if stacked else array for array in arrays]
        for slab, tensor in _slabs(source, names[name], whole=first not in axes):
            if row.weight.plus:
                tensor = tensor - np.asarray(row.weight.plus, tensor.dtype)
            own = {**sizes, first: len(tensor)}  # unless whole, one of our axes
            place = tuple(slab if axis == first else slice(None) for axis in axes)
            parts = to_ours(tensor, layout, row.axes, own, len(arrays))
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
