"""Read a published model's tensors into parameters, one tensor or slab of rows at a time, to limit peak memory."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxformer.model.params import Params, specs
from jaxformer.model.spec import is_spec, path_name
from jaxformer.pretrained.families.layout import Tensor, to_ours
from jaxformer.pretrained.families.tensor_map import Plan, Wanted, embedding_of
from jaxformer.pretrained.formats import Source
from jaxformer.pretrained.formats.source import copy_checked

Put = Callable[[str, np.ndarray], Array]
"""Places a parameter, given its name and values, on its devices."""

SLAB = 2**22
"""Bytes read at a time from a tensor whose first axis is an axis of the parameter."""


def read_params(plan: Plan, dtype: Any, put: Put) -> Params:
    """Return the parameters in `dtype`. Peak memory is the parameters and a slab or one layer's tensor.

    Raises:
        ValueError: a tied model whose file holds a different unembedding; numbers that overflow the dtype.
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
    """Yield the parameters of one row, which are filled layer by layer and slab by slab."""
    source, names, sizes = plan.source, plan.names, plan.config.sizes
    arrays = [_aligned(spec.shape, dtype) for spec in row.specs]
    stacked = row.specs[0].axes[:1] == ("l",)
    layout, axes = row.weight.layout, row.axes.split()
    first = layout.split()[0]
    for layer, name in enumerate(row.tensors):
        into = [array[layer] if stacked else array for array in arrays]
        for slab, tensor in _slabs(source, names[name], at_once=first not in axes):
            if row.weight.plus:
                tensor = tensor - np.asarray(row.weight.plus, tensor.dtype)
            slab_sizes = {**sizes, first: len(tensor)}
            index = tuple(slab if axis == first else slice(None) for axis in axes)
            parts = to_ours(tensor, layout, row.axes, slab_sizes, len(arrays))
            for array, part in zip(into, parts, strict=True):
                copy_checked(part, array[index], f"{source.path} holds {names[name]}")
    for place in row.weight.places:
        yield place, arrays.pop(0)


def _slabs(source: Source, name: str, *, at_once: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Yield a tensor in slabs of rows, or at once, with the indices of the rows."""
    tensor = source.tensors[name]
    rows = tensor.shape[0]
    step = max(SLAB * rows // (math.prod(tensor.shape) * tensor.dtype.itemsize), 1)
    if at_once or step >= rows:
        yield slice(0, rows), source.read(name)
        return
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield slice(start, stop), source.read_rows(name, start, stop)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an empty array at a multiple of 64 bytes, which JAX on CPU can use without a copy."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _check_tied(source: Source, embedding: str, head: str) -> None:
    """Refuse an unembedding that differs from the embedding, in a model where the two are tied."""
    shapes = {source.tensors[name].shape for name in (embedding, head)}
    if len(shapes) > 1 or not all(
        np.array_equal(one, source.read_rows(head, slab.start, slab.stop), equal_nan=True)
        for slab, one in _slabs(source, embedding)
    ):
        raise ValueError(
            f"{source.path} holds {head}, which differs from {embedding}, although its config ties the two"
        )
