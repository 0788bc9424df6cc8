"""The map from a file's tensors to parameters. Names and shapes are checked before any tensor is read."""

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
    """A row of a family's table that applies to a Config."""

    weight: Weight
    specs: tuple[Spec, ...]
    """of the row's parameters"""
    tensors: tuple[str, ...]
    """the names of the tensors, one per layer or a single one"""

    @property
    def axes(self) -> str:
        """The letters of a parameter's axes in one layer."""
        return " ".join(axis for axis in self.specs[0].axes if axis != "l")


def wanted(family: Family, config: Config) -> list[Wanted]:
    """Return the rows that apply to a Config. The names are those of a model saved with its unembedding.

    Raises:
        ValueError: a parameter of the Config that the family does not have.
    """
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
        raise ValueError(f"a {family.name} model has no {min(declared)}, but this Config does")
    return rows


class Plan(NamedTuple):
    """The checked map from a file's tensors to the parameters of a model."""

    source: Source
    family: Family
    config: Config
    rows: list[Wanted]
    names: Mapping[str, str]
    """each tensor's name in the family, to its name in this file"""

    def tensor(self, name: str) -> Tensor:
        """Return the shape, dtype and file of a tensor, by its name in the family."""
        return self.source.tensors[self.names[name]]


def plan(source: Source, family: Family, config: Config) -> Plan:
    """Check that a file has exactly the tensors of a model, with the right shapes, and map them to parameters.

    Raises:
        ValueError: a missing or extra tensor, a wrong shape or dtype; it names the file and the tensor.
    """
    rows, names = wanted(family, config), dict[str, str]()
    for own in source.tensors:
        bare = own.removeprefix(family.prefix)
        if re.fullmatch(family.buffers, bare):
            continue
        is_head = own in (family.head, family.other_head)
        name = family.head if is_head else family.prefix + bare
        if name in names:
            raise ValueError(
                f"{source.path} holds both {names[name]} and {own}, which name the same tensor"
            )
        names[name] = own
    embedding = embedding_of(rows)
    if config.tied and embedding not in names and family.head in names:
        names[embedding] = names.pop(family.head)
    left = set(names) - ({family.head} if config.tied else set())
    for row in rows:
        shape = foreign_shape(row.weight.layout, config.sizes, len(row.specs))
        for name in row.tensors:
            if name not in names:
                raise ValueError(f"{source.path} lacks the tensor {name} of shape {shape}")
            tensor = source.tensors[names[name]]
            if tensor.shape != shape:
                raise ValueError(
                    f"{tensor.file} holds {names[name]} of shape {tensor.shape}; its config requires {shape}"
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
    """Return the widest dtype of a model's matrices in its file; float32 for a mixture of float16 and bfloat16.

    Biases and norms do not count, because many files store them in a wider dtype.
    """
    held = [plan.tensor(name) for row in plan.rows for name in row.tensors]
    found = {tensor.dtype for tensor in held if len(tensor.shape) > 1}
    if found == set(FLOATS[:2]):
        return "float32"
    return str(max(found, key=FLOATS.index))


def _check_float(dtype: np.dtype, what: str) -> None:
    if dtype not in FLOATS:
        raise ValueError(
            f"{what} in an unsupported dtype; jaxformer reads float16, bfloat16, float32 and float64"
        )


def embedding_of(rows: list[Wanted]) -> str:
    """Return the name of the embedding's tensor."""
    return next(row.tensors[0] for row in rows if row.weight.places == ("W_E",))
