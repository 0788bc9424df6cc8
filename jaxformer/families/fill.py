"""Foreign tensors into our arrays: all names and shapes are checked first, then one tensor is read at a time."""

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
from jaxformer.params import Params, specs
from jaxformer.spec import Spec, path_name

Put = Callable[[str, np.ndarray], Array]
"""Takes one of our arrays, by name, to where it is to live."""


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
    """Our parameters of a file's tensors, in `dtype`; with no more than one array and one tensor beside them.

    Raises:
        ValueError: a tensor that is missing, superfluous, of another shape, or no float; an unembedding that is not
            the embedding where the two are tied.
    """
    rows = wanted(family, config)
    names = check(source, family, config, rows)
    found: dict[str, Array] = {}
    for row in rows:
        for place, array in _arrays(source, row, names, config, dtype):
            found[place] = put(place, array)
            del array
    _check_tied(source, family, config, names)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: found[path_name(path)],
        specs(config),
        is_leaf=lambda node: isinstance(node, Spec),
    )


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
    """The arrays of one row, filled layer by layer."""
    arrays = [_aligned(spec.shape, dtype) for spec in row.specs]
    stacked = row.specs[0].axes[:1] == ("l",)
    for layer, name in enumerate(row.tensors):
        tensor = source.read(names[name])
        tensor = tensor - np.asarray(row.weight.plus, tensor.dtype) if row.weight.plus else tensor
        parts = to_ours(tensor, row.weight.layout, row.axes, config.sizes, len(arrays))
        for array, part in zip(arrays, parts, strict=True):
            _copy(part, array[layer] if stacked else array, f"{source.path} holds {names[name]}")
    for place in row.weight.places:
        yield place, arrays.pop(0)


def _copy(part: Tensor, into: np.ndarray, what: str) -> None:
    """Into another dtype, if that has room for the numbers."""
    with np.errstate(over="ignore"):  # said below, with the tensor's name
        np.copyto(into, part, casting="unsafe")
    narrower = jnp.finfo(into.dtype).max < jnp.finfo(part.dtype).max
    if narrower and not np.isfinite(into).all() and np.isfinite(part).all():
        raise ValueError(
            f"{what} with numbers that {into.dtype} has no room for; choose another dtype"
        )


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array that JAX can take over on CPU without a copy: it begins at a multiple of 64 bytes."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _check_tied(source: Source, family: Family, config: Config, names: Mapping[str, str]) -> None:
    """An unembedding that is kept beside the embedding that it is tied to must be the same."""
    if not config.tied or family.head not in names:
        return
    row = next(row for row in wanted(family, config) if row.weight.places == ("W_E",))
    embedding, head = (names[name] for name in (row.tensors[0], family.head))
    shapes = {source.tensors[name].shape for name in (embedding, head)}
    if len(shapes) > 1 or not np.array_equal(source.read(embedding), source.read(head)):
        raise ValueError(
            f"{source.path} holds {head} that is not {embedding}, and its config says that the two are tied"
        )
