"""Where a model's arrays lie on many devices: rules from the names of axes to the axes of a mesh, as data.

Data parallel, fully sharded, tensor parallel and any mixture of them are sets of rules; none is a code path:

    {"batch": "data"}                                                  a copy of the model on every device
    {"batch": "data", "d": "data"}                                     the model in parts, fetched layer by layer
    {"n": "tensor", "k": "tensor", "f": "tensor", "v": "tensor"}       heads, neurons and vocabulary in parts
    {"batch": "data", "t": "sequence"}                                 the positions of a long sequence in parts

The compiler does the rest: it splits the one program that all devices run, and puts in what they must tell
each other.

Source: Xu et al. 2021, "GSPMD"; fully sharded: Rajbhandari et al. 2020, "ZeRO"; tensor: Shoeybi et al. 2019,
"Megatron-LM", §3; a residual stream in parts along t: Korthikanti et al. 2022, §4.2.2.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from jaxformer.config import Config
from jaxformer.model.params import Params, specs
from jaxformer.model.sites import AXES, Edit, Layer, Site
from jaxformer.model.spec import Spec, is_spec, path_name

Places = str | tuple[str, ...] | None
"""An axis of a mesh, several of them, or none: a copy in each of its rows."""
Rules = Mapping[str, Places]
"""The mesh axes for an axis: a letter of the dimension key that parameters have, "batch", or "t"."""

RULES: Rules = {
    "batch": ("data", "fsdp"),
    "t": "sequence",
    "d": "fsdp",
    "n": "tensor",
    "k": "tensor",
    "f": "tensor",
    "v": "tensor",
}
"""What the usual names of mesh axes mean. Of a mesh that has only some of them, only those count."""


def partition(config: Config, rules: Rules) -> Params:
    """How to lay the parameters on a mesh: Params with a `PartitionSpec` in the place of each array.

    Args:
        rules: the mesh axis for each axis; of one that no rule names, every device has the whole.

    Raises:
        ValueError: an axis that no parameter or batch has; a parameter with two axes on one mesh axis.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> partition(config, {"n": "tensor"}).blocks.attn.W_Q
    P(None, None, 'tensor', None)
    """
    known = {*config.sizes, "batch", "t"}
    if unknown := sorted(rules.keys() - known):
        raise ValueError(f"no axis {unknown[0]!r}; the axes are {', '.join(sorted(known))}")

    def places(path: Any, spec: Spec) -> PartitionSpec:
        taken: dict[str, str] = {}
        for letter in spec.axes:
            for axis in mesh_axes(rules.get(letter)):
                if axis in taken:
                    raise ValueError(
                        f"{path_name(path)} would have both {taken[axis]} and {letter} on the mesh axis "
                        f"{axis!r}; give one of them another axis, or none"
                    )
                taken[axis] = letter
        return PartitionSpec(*(rules.get(letter) for letter in spec.axes))

    return jax.tree_util.tree_map_with_path(places, specs(config), is_leaf=is_spec)


def shardings(config: Config, mesh: Mesh, rules: Rules) -> Params:
    """Where each parameter lies on this mesh: Params with a `NamedSharding` in the place of each array.

    Raises:
        ValueError: as `partition`; a rule for an axis that the mesh lacks, a size that its axis does not divide.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> shardings(config, mesh, {"d": "data"}).W_E.spec
    P(None, 'data')
    """
    layout = partition(config, rules)
    check_mesh(mesh, rules)
    mesh = automatic(mesh)

    def place(path: Any, spec: Spec, places: PartitionSpec) -> NamedSharding:
        for letter, size in zip(spec.axes, spec.shape, strict=True):
            parts = parts_of(mesh, rules, letter)
            if size % parts:
                raise ValueError(
                    f"{path_name(path)} has {size} along {letter}, which does not divide into {parts} parts "
                    f"({_named(mesh, rules[letter])}); choose a mesh or a rule that divides it"
                )
        # XLA lays what holds nothing everywhere.
        return NamedSharding(mesh, places if math.prod(spec.shape) else PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, specs(config), layout, is_leaf=is_spec)


def parts_of(mesh: Mesh, rules: Rules, axis: str) -> int:
    """How many parts an axis is cut into."""
    return math.prod(mesh.shape[name] for name in mesh_axes(rules.get(axis)))


def fitting(mesh: Mesh, rules: Rules = RULES) -> Rules:
    """The rules without the mesh axes that this mesh does not have.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> fitting(mesh)
    {'batch': 'data'}
    """
    kept = {
        axis: tuple(name for name in mesh_axes(places) if name in mesh.shape)
        for axis, places in rules.items()
    }
    return {axis: names[0] if len(names) == 1 else names for axis, names in kept.items() if names}


def check_mesh(mesh: Mesh, rules: Rules) -> None:
    """Refuse rules for mesh axes that are not there, or that name one twice.

    Raises:
        ValueError: naming the rule and the mesh's axes.
    """
    for axis, places in rules.items():
        names = mesh_axes(places)
        if len(set(names)) < len(names):
            raise ValueError(
                f"the rule {axis}={'+'.join(names)} names a mesh axis twice; name it once"
            )
        for name in names:
            if name not in mesh.shape:
                has = ", ".join(f"{n}={size}" for n, size in mesh.shape.items())
                raise ValueError(
                    f"the rule {axis}={name} asks for a mesh axis {name}; this has {has}"
                )


def automatic(mesh: Mesh) -> Mesh:
    """The same mesh, its axes left to the compiler: `jax.make_mesh`'s own would want each result's place told."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def constrain(mesh: Mesh, rules: Rules) -> Edit:
    """An edit that tells the compiler where activations lie; it changes no number.

    The stream and what is written to it are whole along d, as parameters are when they are used, whatever
    their rule; queries, neurons and logits follow the rules of n, k, f and v, and all but keys and values
    that of t, where no other axis of theirs has its mesh axis. For a batch, `jax.vmap` with
    `spmd_axis_name`, the batch's mesh axes. An axis that its mesh axis does not divide stays whole.

    Raises:
        ValueError: as `check_mesh`.

    >>> mesh = jax.make_mesh((1,), ("tensor",))
    >>> constrain(mesh, {"f": "tensor"}).places("post", (7, 32))
    P(None, 'tensor')
    """
    check_mesh(mesh, rules)
    return _Constraint(automatic(mesh), tuple(rules.items()))


PINNED = (
    "embed", "q", "k", "v", "z", "attn_out", "resid_mid", "pre", "pre_linear", "post", "mlp_out",
    "resid_post", "logits",
)  # fmt: skip
"""The sites that are told. An edit of head_out would form every head's own part, scores and patterns follow."""


@dataclasses.dataclass(frozen=True)
class _Constraint:
    mesh: Mesh
    rules: tuple[tuple[str, Places], ...]

    def __call__(
        self, site: Site, layer: Layer, value: Shaped[Array, "..."]
    ) -> Shaped[Array, "..."]:
        del layer
        name = str(site)
        if name not in PINNED:
            return value
        where = NamedSharding(self.mesh, self.places(name, value.shape))
        return jax.lax.with_sharding_constraint(value, where)

    def places(self, site: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Where a site's value lies."""
        rules = dict(self.rules)
        letters = AXES[site].split()
        taken = set(mesh_axes(rules.get("batch")))
        found: dict[str, Places] = {}
        # t last: where heads or neurons want its mesh axis, they are in parts and the sequence is whole.
        for letter in sorted(letters, key="t".__eq__):
            names = mesh_axes(rules.get(letter)) if letter in "tnkfv" else ()
            if letter == "t" and site in ("k", "v"):
                names = ()  # everybody is asked by everybody
            size = shape[letters.index(letter)]
            if taken.isdisjoint(names) and size % math.prod(self.mesh.shape[n] for n in names) == 0:
                taken |= set(names)
                found[letter] = rules.get(letter) if names else None
        return PartitionSpec(*(found.get(letter) for letter in letters))


def mesh_axes(places: Places) -> tuple[str, ...]:
    """The mesh axes that a rule names."""
    if places is None:
        return ()
    return (places,) if isinstance(places, str) else tuple(places)


def _named(mesh: Mesh, places: Places) -> str:
    return ", ".join(f"{name}={mesh.shape[name]}" for name in mesh_axes(places))
