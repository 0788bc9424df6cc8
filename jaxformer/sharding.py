"""Sharding: rules map the axes of a model's arrays to the axes of a device mesh.

The kinds of parallelism, and any mixture of them, are rules and need no code of their own:

    {"batch": "data"}                                                  data parallel: each device has all parameters
    {"batch": "data", "d": "data"}                                     fully sharded: parameters gathered per layer
    {"n": "tensor", "k": "tensor", "f": "tensor", "v": "tensor"}       tensor parallel: heads, neurons, vocabulary
    {"batch": "data", "t": "sequence"}                                 sequence parallel: positions

All devices run one program. The compiler partitions it and inserts the communication.

Source: Xu et al. 2021, "GSPMD"; fully sharded: Rajbhandari et al. 2020, "ZeRO"; tensor: Shoeybi et al. 2019,
"Megatron-LM", §3; a residual stream sharded along t: Korthikanti et al. 2022, §4.2.2.
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
from jaxformer.model.spec import Spec, is_spec, path_name
from jaxformer.sites import AXES, Edit, Layer

Places = str | tuple[str, ...] | None
"""A mesh axis, several mesh axes, or None: not sharded."""
Rules = Mapping[str, Places]
"""The mesh axes of each array axis: a letter of a parameter's axis in the dimension key, "batch" or "t"."""

RULES: Rules = {
    "batch": ("data", "fsdp"),
    "t": "sequence",
    "d": "fsdp",
    "n": "tensor",
    "k": "tensor",
    "f": "tensor",
    "v": "tensor",
}
"""Rules for the usual names of mesh axes; `fitting` drops those that a mesh lacks."""


def partition(config: Config, rules: Rules) -> Params:
    """Return the `PartitionSpec` of each parameter, as Params.

    Args:
        rules: the mesh axis for each axis; an axis without a rule is not sharded.

    Raises:
        ValueError: a rule for an unknown axis; a parameter with two axes on one mesh axis.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> partition(config, {"n": "tensor"}).blocks.attn.W_Q
    P(None, None, 'tensor', None)
    """
    known = {*config.sizes, "batch", "t"}
    if unknown := sorted(rules.keys() - known):
        raise ValueError(
            f"the rules name an unknown axis {unknown[0]!r}; choose from {', '.join(sorted(known))}"
        )

    def places(path: Any, spec: Spec) -> PartitionSpec:
        taken: dict[str, str] = {}
        for letter in spec.axes:
            for axis in mesh_axes(rules.get(letter)):
                if axis in taken:
                    raise ValueError(
                        f"the rules shard both {taken[axis]} and {letter} of {path_name(path)} over the mesh axis "
                        f"{axis!r}; give one of them another mesh axis, or None"
                    )
                taken[axis] = letter
        return PartitionSpec(*(rules.get(letter) for letter in spec.axes))

    return jax.tree_util.tree_map_with_path(places, specs(config), is_leaf=is_spec)


def shardings(config: Config, mesh: Mesh, rules: Rules) -> Params:
    """Return the `NamedSharding` of each parameter on a mesh, as Params.

    Raises:
        ValueError: as in `partition`; a rule for an axis that the mesh lacks; a size that the shards do not divide.

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
                    f"{path_name(path)} has size {size} along {letter}, which is not a multiple of {parts} shards "
                    f"({_named(mesh, rules[letter])}); choose another mesh or rule"
                )
        # XLA replicates empty arrays.
        return NamedSharding(mesh, places if math.prod(spec.shape) else PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, specs(config), layout, is_leaf=is_spec)


def parts_of(mesh: Mesh, rules: Rules, axis: str) -> int:
    """Return the number of shards of an axis."""
    return math.prod(mesh.shape[name] for name in mesh_axes(rules.get(axis)))


def fitting(mesh: Mesh, rules: Rules = RULES) -> Rules:
    """Return the rules without mesh axes that this mesh lacks.

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
    """Refuse rules that name a mesh axis which does not exist, or one axis twice.

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
                present = ", ".join(f"{n}={size}" for n, size in mesh.shape.items())
                raise ValueError(
                    f"the rule {axis}={name} names a mesh axis that does not exist; this mesh has {present}"
                )


def automatic(mesh: Mesh) -> Mesh:
    """Return the mesh with all axes of type Auto: the compiler chooses the sharding of intermediate results.

    Explicit axes, such as those of `jax.make_mesh`, would require the code to state it.
    """
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def constrain(mesh: Mesh, rules: Rules) -> Edit:
    """Return an edit that tells the compiler how to shard activations; it changes no number.

    Heads, neurons and logits follow the rules of n, k, f and v. Positions follow the rule of t, except in keys and
    values and where another axis of the same array uses its mesh axis. Nothing is sharded along d, so that parameters
    sharded along d are gathered before use. An axis whose size the shards do not divide is not sharded. For a batch,
    use `jax.vmap` with `spmd_axis_name`, the batch's mesh axes.

    Raises:
        ValueError: as in `check_mesh`.

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
"""The sites with a constraint. One on head_out would compute every head's output; scores and pattern need none."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Constraint:
    mesh: Mesh
    rules: tuple[tuple[str, Places], ...]

    def __call__(
        self, site: str, layer: Layer, value: Shaped[Array, "..."]
    ) -> Shaped[Array, "..."]:
        del layer
        if site not in PINNED:
            return value
        where = NamedSharding(self.mesh, self.places(site, value.shape))
        return jax.lax.with_sharding_constraint(value, where)

    def places(self, site: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Return the sharding of a site's value."""
        rules = dict(self.rules)
        letters = AXES[site].split()
        taken = set(mesh_axes(rules.get("batch")))
        found: dict[str, Places] = {}
        # t comes last: heads and neurons have precedence if they use the same mesh axis.
        for letter in sorted(letters, key="t".__eq__):
            names = mesh_axes(rules.get(letter)) if letter in "tnkfv" else ()
            if letter == "t" and site in ("k", "v"):
                names = ()  # every query needs all keys and values
            size = shape[letters.index(letter)]
            if taken.isdisjoint(names) and size % math.prod(self.mesh.shape[n] for n in names) == 0:
                taken |= set(names)
                found[letter] = rules.get(letter) if names else None
        return PartitionSpec(*(found.get(letter) for letter in letters))


def mesh_axes(places: Places) -> tuple[str, ...]:
    """Return the mesh axes that a rule names."""
    if places is None:
        return ()
    return (places,) if isinstance(places, str) else tuple(places)


def _named(mesh: Mesh, places: Places) -> str:
    return ", ".join(f"{name}={mesh.shape[name]}" for name in mesh_axes(places))
