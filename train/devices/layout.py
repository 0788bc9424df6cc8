"""The layout of a run on many devices: a mesh, and the rules that shard arrays over it."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxformer.config import Config
from jaxformer.model.params import Params
from jaxformer.sharding import (
    RULES,
    Places,
    Rules,
    check_mesh,
    constrain,
    fitting,
    mesh_axes,
    parts_of,
    shardings,
)
from jaxformer.sites import Edit, identity
from train.devices.mesh_options import parse_mesh, parse_rules
from train.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and its rules. Without a mesh all arrays are on the first device."""

    mesh: Mesh | None = None
    rules: tuple[tuple[str, Places], ...] = ()

    @property
    def about(self) -> str:
        """The end of a sentence that names the devices; empty without a mesh."""
        if self.mesh is None:
            return ""
        axes = ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        processes = jax.process_count()
        return f", on {self.mesh.size} devices ({axes})" + (
            f" of {processes} processes" if processes > 1 else ""
        )

    @property
    def devices(self) -> Mesh:
        """The mesh.

        Raises:
            ValueError: there is none.
        """
        if self.mesh is None:
            raise ValueError("sharding needs a mesh; give one, which may have a single device")
        return self.mesh

    @property
    def batch(self) -> Places:
        """The mesh axes that shard the sequences of a batch."""
        return dict(self.rules).get("batch")

    @property
    def edit(self) -> Edit:
        """An edit that tells the compiler how activations are sharded."""
        return identity if self.mesh is None else constrain(self.mesh, dict(self.rules))

    def check(self, recipe: Recipe, config: Config) -> None:
        """Refuse a run whose arrays cannot be divided evenly among the devices.

        Raises:
            ValueError: names the parameter, the batch or the context, and a size that fits.
        """
        if self.mesh is None:
            return
        self.params(config)
        if shared := set(self.axes("t")) & set(self.axes("batch")):
            raise ValueError(
                f"the rules shard both t and batch along {min(shared)}; give one of them another mesh axis, or none"
            )
        rows, parts = recipe.batch // recipe.accumulate, self.parts("batch")
        if rows % parts:
            raise ValueError(
                f"batch={recipe.batch} with accumulate={recipe.accumulate} gives micro-batches of {rows}, not a "
                f"multiple of the {parts} devices along {self.batch}; choose a batch that is a multiple of "
                f"{parts * recipe.accumulate}"
            )
        if recipe.context % self.parts("t"):
            raise ValueError(
                f"context={recipe.context} is not a multiple of the {self.parts('t')} devices along "
                f"{dict(self.rules)['t']}; choose a multiple"
            )

    def axes(self, axis: str) -> tuple[str, ...]:
        """Return the mesh axes along which an axis is sharded."""
        return mesh_axes(dict(self.rules).get(axis))

    def parts(self, axis: str) -> int:
        """Return the number of shards of an axis."""
        return 1 if self.mesh is None else parts_of(self.mesh, dict(self.rules), axis)

    def params(self, config: Config) -> Any:
        """Return the sharding of each parameter; gradients and moments have the same.

        Raises:
            ValueError: rules that do not fit the model or the mesh.
        """
        return shardings(config, self.devices, dict(self.rules))

    def looked_up(self, params: Params, config: Config) -> Params:
        """Return the parameters with an embedding that is not sharded along the mesh axes of the batch.

        Otherwise the compiler may look up rows on other devices and then move all activations.
        """
        if self.mesh is None:
            return params
        batch = set(self.axes("batch"))
        kept = [None if batch & set(mesh_axes(p)) else p for p in self.params(config).W_E.spec]
        table = jax.lax.with_sharding_constraint(params.W_E, self.placed(*kept))
        return params._replace(W_E=table)

    def pinned(self, like_params: Any, config: Config) -> Any:
        """Tell the compiler to shard a tree like the parameters."""
        if self.mesh is None:
            return like_params
        return jax.lax.with_sharding_constraint(like_params, self.params(config))

    def state(self, config: Config, state: Any) -> Any:
        """Return the sharding of each array of a TrainState or of its shapes.

        Moments are sharded like their parameters; all else is replicated. Every device has all members of an ensemble.
        """
        members = [None] * int(state.step.ndim)
        places = {
            path: self.placed(*members, *place.spec)
            for path, place in jax.tree_util.tree_leaves_with_path(self.params(config))
        }

        def place(path: Any, array: Any) -> NamedSharding:
            # The path of a moment ends with the path of its parameter, in every optimizer.
            ends = (path[i:] for i in range(len(path)))
            found = next((places[end] for end in ends if end in places), self.everywhere)
            return found if len(found.spec) <= array.ndim else self.everywhere

        return jax.tree_util.tree_map_with_path(place, state)

    def jitted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function whose results are replicated, so that every process can read them."""
        return jax.jit(function, out_shardings=None if self.mesh is None else self.everywhere)

    @property
    def everywhere(self) -> NamedSharding:
        """The sharding of a replicated array."""
        return self.placed()

    def placed(self, *places: Places) -> NamedSharding:
        """Return the sharding of an array, given the mesh axes for each of its axes."""
        return NamedSharding(self.devices, PartitionSpec(*places))

    def put(self, tree: Any, *places: Places) -> Any:
        """Put arrays on the mesh, or without a mesh on the first device; every process must hold the full arrays."""
        if self.mesh is None:
            return jax.tree.map(jax.numpy.asarray, tree)
        where = self.placed(*places)

        def put(array: Any) -> Any:
            array = np.asarray(array)
            return jax.make_array_from_callback(array.shape, where, array.__getitem__)

        return jax.tree.map(put, tree)


def lay_out(mesh: str | None, rules: tuple[str, ...], devices: Any = None) -> Layout:
    """Return the Layout for these command-line options, on these devices or on all that JAX has.

    A rule given here replaces the one in `jaxformer.sharding.RULES`. RULES for mesh axes that are missing are left out.

    Raises:
        ValueError: a mesh that does not fit the number of devices; rules without a mesh or for axes that it lacks.
    """
    if mesh is None:
        if rules:
            raise ValueError(f"--rules {rules[0]} needs a mesh; give --mesh too")
        return Layout()
    axes = parse_mesh(mesh)
    devices = jax.devices() if devices is None else devices
    number = math.prod(axes.values())
    if number != len(devices):
        raise ValueError(
            f"--mesh {mesh} needs {number} device{'s' * (number > 1)}, and there are {len(devices)} "
            f"({devices[0].platform}); choose sizes whose product is {len(devices)}"
            + _virtual_devices_hint(devices[0].platform, number)
        )
    made = jax.make_mesh(
        tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes), devices=devices
    )
    own = parse_rules(rules)
    check_mesh(made, own)
    merged: Rules = {**fitting(made, RULES), **own}
    used = {name for places in merged.values() for name in mesh_axes(places)}
    if idle := [name for name, size in axes.items() if size > 1 and name not in used]:
        known = sorted({name for places in RULES.values() for name in mesh_axes(places)})
        raise ValueError(
            f"nothing is sharded along {idle[0]} of --mesh {mesh}; the axes with default rules are "
            f"{', '.join(known)}; another axis needs --rules"
        )
    return Layout(made, tuple(merged.items()))


def pretend(number: int) -> None:
    """Split the CPU into this many virtual devices, unless JAX is already initialized."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", number)


def _virtual_devices_hint(platform: str, number: int) -> str:
    if platform != "cpu" or jax.process_count() > 1:
        return ""
    return f", or use virtual devices: JAX_NUM_CPU_DEVICES={number} python -m train ..."
