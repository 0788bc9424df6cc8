"""Where a run lies on many devices: its mesh, and the rules that lay arrays on it."""

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
from jaxformer.model.sites import Edit, keep
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
from train.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and its rules; without a mesh all is on the first device, and nothing here does anything."""

    mesh: Mesh | None = None
    rules: tuple[tuple[str, Places], ...] = ()

    @property
    def about(self) -> str:
        """The devices in words, to be added to a sentence; nothing without a mesh."""
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
            raise ValueError(
                "nothing is laid out without a mesh; give one, of one device if need be"
            )
        return self.mesh

    @property
    def batch(self) -> Places:
        """The mesh axes of a batch's sequences."""
        return dict(self.rules).get("batch")

    @property
    def edit(self) -> Edit:
        """Tells the compiler where activations lie."""
        return keep if self.mesh is None else constrain(self.mesh, dict(self.rules))

    def check(self, recipe: Recipe, config: Config) -> None:
        """Refuse a run whose arrays do not divide among the devices.

        Raises:
            ValueError: naming the parameter, or the batch or the context, and what would divide.
        """
        if self.mesh is None:
            return
        self.params(config)
        if shared := set(self.axes("t")) & set(self.axes("batch")):
            raise ValueError(
                f"the rules lay both t and batch along {min(shared)}; give one of them another axis, or none"
            )
        rows, parts = recipe.batch // recipe.accumulate, self.parts("batch")
        if rows % parts:
            raise ValueError(
                f"batch={recipe.batch} in accumulate={recipe.accumulate} parts leaves {rows} sequences, which do "
                f"not divide among the {parts} devices along {self.batch}; choose a multiple of "
                f"{parts * recipe.accumulate}"
            )
        if recipe.context % self.parts("t"):
            raise ValueError(
                f"context={recipe.context} does not divide among the {self.parts('t')} devices along "
                f"{dict(self.rules)['t']}; choose a multiple"
            )

    def axes(self, axis: str) -> tuple[str, ...]:
        """The mesh axes of an axis."""
        return mesh_axes(dict(self.rules).get(axis))

    def parts(self, axis: str) -> int:
        """How many parts an axis is cut into."""
        return 1 if self.mesh is None else parts_of(self.mesh, dict(self.rules), axis)

    def batched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of every sequence of a batch, laid on the batch's mesh axes."""
        return jax.vmap(function, spmd_axis_name=self.batch or None)

    def params(self, config: Config) -> Any:
        """Where parameters lie, and what is like them: gradients, moments.

        Raises:
            ValueError: rules that do not fit the model or the mesh.
        """
        return shardings(config, self.devices, dict(self.rules))

    def looked_up(self, config: Config, params: Params) -> Params:
        """The parameters, with an embedding that no mesh axis of the batch cuts: a token's device has its row's parts.

        Left to itself, the compiler may look rows up where they lie and then move whole activations.
        """
        if self.mesh is None:
            return params
        batch = set(self.axes("batch"))
        kept = [None if batch & set(mesh_axes(p)) else p for p in self.params(config).W_E.spec]
        table = jax.lax.with_sharding_constraint(params.W_E, self.placed(*kept))
        return params._replace(W_E=table)

    def pinned(self, config: Config, like_params: Any) -> Any:
        """A tree like the parameters, which the compiler is told to lay where they are."""
        if self.mesh is None:
            return like_params
        return jax.lax.with_sharding_constraint(like_params, self.params(config))

    def state(self, config: Config, state: Any) -> Any:
        """Where each array of a TrainState (or its shapes) lies: moments beside their parameters, the rest everywhere.

        Members of an ensemble are all on each device.
        """
        members = [None] * int(state.step.ndim)
        places = {
            path: self.placed(*members, *place.spec)
            for path, place in jax.tree_util.tree_leaves_with_path(self.params(config))
        }

        def place(path: Any, array: Any) -> NamedSharding:
            # A moment's path ends with that of its parameter, whatever the optimizer has around it.
            ends = (path[i:] for i in range(len(path)))
            found = next((places[end] for end in ends if end in places), self.everywhere)
            return found if len(found.spec) <= array.ndim else self.everywhere

        return jax.tree_util.tree_map_with_path(place, state)

    def jitted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled, its results a copy on each device, so that every process can read them."""
        return jax.jit(function, out_shardings=None if self.mesh is None else self.everywhere)

    @property
    def everywhere(self) -> NamedSharding:
        """A copy on each device."""
        return self.placed()

    def placed(self, *places: Places) -> NamedSharding:
        """The sharding of an array with these mesh axes along its axes."""
        return NamedSharding(self.devices, PartitionSpec(*places))

    def put(self, tree: Any, *places: Places) -> Any:
        """Arrays that every process has whole, as arrays on the mesh; without one, on the first device."""
        if self.mesh is None:
            return jax.tree.map(jax.numpy.asarray, tree)
        where = self.placed(*places)

        def put(array: Any) -> Any:
            array = np.asarray(array)
            return jax.make_array_from_callback(array.shape, where, array.__getitem__)

        return jax.tree.map(put, tree)


def parse_mesh(text: str) -> dict[str, int]:
    """The axes of a mesh and their sizes, from the command line.

    Raises:
        ValueError: text of another form, an axis twice, a size below 1.

    >>> parse_mesh("data=2,fsdp=4")
    {'data': 2, 'fsdp': 4}
    """
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, size = (piece.strip() for piece in part.partition("="))
        if not (equals and name.isidentifier() and size.isdecimal()):
            raise ValueError(
                f"mesh={text!r} is no mesh; write AXIS=SIZE,AXIS=SIZE as data=2,fsdp=4"
            )
        if name in axes:
            raise ValueError(f"mesh={text!r} has the axis {name} twice; give each one size")
        if int(size) < 1:
            raise ValueError(f"mesh={text!r} has {name}={size}; an axis has at least 1 device")
        axes[name] = int(size)
    return axes


def parse_rules(texts: tuple[str, ...]) -> dict[str, Places]:
    """Rules from the command line: AXIS=MESH-AXIS, several mesh axes joined by "+", none as "none".

    Raises:
        ValueError: text of another form, an axis twice.

    >>> parse_rules(("batch=data+fsdp", "d=fsdp", "v=none"))
    {'batch': ('data', 'fsdp'), 'd': 'fsdp', 'v': None}
    """
    rules: dict[str, Places] = {}
    for text in texts:
        axis, equals, places = text.partition("=")
        names = tuple(places.split("+"))
        if not (equals and axis and all(name.isidentifier() for name in names)):
            raise ValueError(
                f"{text!r} is no rule; write AXIS=MESH-AXIS, as d=fsdp or batch=data+fsdp"
            )
        if axis in rules:
            raise ValueError(f"the axis {axis} has two rules; give it one")
        rules[axis] = None if names == ("none",) else names[0] if len(names) == 1 else names
    return rules


def lay_out(mesh: str | None, rules: tuple[str, ...], devices: Any = None) -> Layout:
    """The Layout that a command line names, on these devices or all that JAX has.

    Without rules: those of `jaxformer.sharding.RULES`, as far as the mesh has their axes. A rule given takes the
    place of the one there.

    Raises:
        ValueError: a mesh of another number of devices; rules without a mesh, or for axes that it lacks.
    """
    if mesh is None:
        if rules:
            raise ValueError(f"--rules {rules[0]} says where on a mesh arrays lie; give --mesh too")
        return Layout()
    axes = parse_mesh(mesh)
    devices = jax.devices() if devices is None else devices
    number = math.prod(axes.values())
    if number != len(devices):
        raise ValueError(
            f"--mesh {mesh} is of {number} device{'s' * (number > 1)}, and there are {len(devices)} "
            f"({devices[0].platform}); choose sizes whose product is {len(devices)}"
            + _how_to_have(devices[0].platform, number)
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
            f"nothing lies along {idle[0]} of --mesh {mesh}; the axes with rules of their own are "
            f"{', '.join(known)}, others need --rules"
        )
    return Layout(made, tuple(merged.items()))


def pretend(number: int) -> None:
    """Cut the CPU into so many devices, unless JAX has begun with what it has."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", number)


def _how_to_have(platform: str, number: int) -> str:
    if platform != "cpu" or jax.process_count() > 1:
        return ""
    return f", or pretend to have them: JAX_NUM_CPU_DEVICES={number} python -m train ..."
