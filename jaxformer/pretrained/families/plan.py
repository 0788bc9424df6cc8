"""Which of a file's tensors hold which of our arrays: names and shapes are checked before anything is read."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxformer.config import Config
from jaxformer.model.params import specs
from jaxformer.model.spec import Spec, is_spec, path_name
from jaxformer.pretrained.families.family import Family, Weight
from jaxformer.pretrained.families.layout import foreign_shape
from jaxformer.pretrained.formats import Source, Tensor
from jaxformer.pretrained.formats.source import FLOATS


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
        for path, spec in jax.tree_util.tree_leaves_with_path(specs(config), is_leaf=is_spec)
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


class Plan(NamedTuple):
    """Whatever is needed to read a model out of a file, all of it checked."""

    source: Source
    family: Family
    config: Config
    rows: list[Wanted]
    names: Mapping[str, str]  # the file's own, of every tensor

    def tensor(self, name: str) -> Tensor:
        """What the file says of a tensor."""
        return self.source.tensors[self.names[name]]


def plan(source: Source, family: Family, config: Config) -> Plan:
    """What to read from where, once all tensors are there with the right shapes, and none besides.

    Raises:
        ValueError: naming the file and the first tensor that is not so.
    """
    rows, names = wanted(family, config), dict[str, str]()
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
    embedding = embedding_of(rows)
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
    return Plan(source, family, config, rows, names)


def own_dtype(plan: Plan) -> str:
    """The widest float of a model's matrices in its file: float32 if two 16-bit kinds are mixed.

    Biases and norms do not count, which files keep wider, nor what is no parameter of the model.
    """
    held = [plan.tensor(name) for row in plan.rows for name in row.tensors]
    found = {tensor.dtype for tensor in held if len(tensor.shape) > 1}
    if found == set(FLOATS[:2]):
        return "float32"
    return str(max(found, key=FLOATS.index))


def _check_float(dtype: np.dtype, what: str) -> None:
    if dtype not in FLOATS:
        raise ValueError(
            f"{what} in a dtype that is not read; jaxformer reads float16, bfloat16, float32 and float64"
        )


def embedding_of(rows: list[Wanted]) -> str:
    """The name of the tensor that holds the embedding alone."""
    return next(row.tensors[0] for row in rows if row.weight.places == ("W_E",))
