"""How the passes of a sweep run: together, up the layers.

A pass with a change in layer 5 is the pass without it up to there. So those that change an early layer set out first,
others join where their own change is, and each layer runs once for all that have come so far, as one batch.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from jaxformer.config import Compute, Config
from jaxformer.interp.metric import scalar
from jaxformer.model.params import Block, Params
from jaxformer.model.sites import ASKED, READ, Edit, Layer, Site, keep, position_axis
from jaxformer.model.stream import pick
from jaxformer.model.tap import Tap
from jaxformer.model.transformer import block, forward, unembed

SHARED_ALONG = "data"
"""The mesh axis whose places share the cells of a sweep; the others are the compiler's, for the parameters."""


class Runs(NamedTuple):
    """The two texts, and how they are judged: where their logits are read (None: everywhere), and by what."""

    clean: Int[Array, "b t"]
    corrupted: Int[Array, "b t"]
    read: Int[Array, " r"] | None
    given: Any = ((), {})
    """arguments of the metric's function, before the logits"""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep is compiled for. Its cells are rows of whole numbers: the layer they change, then what they like."""

    config: Config
    metric: Callable[..., Any]
    """the metric's function, whose other arguments the runs hold"""
    single: bool
    """one sequence, whose logits the metric gets without an axis b"""
    compute: Compute

    @property
    def recording(self) -> int:
        """How many passes `record` makes side by side."""
        return 2

    def record(self, params: Params, runs: Runs) -> Any:
        """What all cells need of the two runs; the batch in front."""
        raise NotImplementedError

    def start(self, params: Params, held: Any, layer: int, cell: Int[Array, " k"]) -> Array:
        """A cell's stream [t d] before a layer; `held` of one sequence."""
        raise NotImplementedError

    def edit(self, held: Any, own: Block, index: Layer, cell: Int[Array, " k"]) -> Edit:
        """What a cell changes in the layer of this number and these parameters."""
        raise NotImplementedError

    def last_edit(self, held: Any, cell: Int[Array, " k"]) -> Edit:
        """What it changes after all layers."""
        del held, cell
        return keep


def show(
    sweep: Sweep, params: Params, tokens: Int[Array, "b t"], read: Any, *sites: str
) -> dict[str, Array]:
    """What a batch shows at some sites, the batch in front; the logits' sites at the places read."""
    if read is None and not READ & set(sites):
        read = jnp.array([-1])  # nobody looks: unembed one

    def one(tokens: Array) -> dict[str, Array]:
        return forward(
            params, sweep.config, tokens, capture=sites, read=read, compute=sweep.compute
        ).activations

    return jax.vmap(one)(tokens)


@partial(jax.jit, static_argnums=0, static_argnames=("landings", "at_once", "mesh"))
def climb(
    sweep: Sweep,
    params: Params,
    runs: Runs,
    held: Any,
    columns: tuple[Int[Array, "m _ k"], ...],
    *,
    landings: tuple[int, ...],
    at_once: int,
    mesh: Mesh | None,
) -> Float[Array, "m c"]:
    """Every cell's metric, column after column; of a column, those first that join at the first landing.

    On a mesh each place along its axis has an equal part of those that join at a landing, and a column is what the
    first place has of it, then what the second has, and so on.
    """
    dtype = jnp.dtype(sweep.compute.dtype or params.W_E.dtype)
    params = jax.tree.map(lambda array: array.astype(dtype), params)
    climbed = partial(_climbed, sweep, landings, at_once)
    if mesh is None:
        return climbed(params, runs, held, list(columns))
    whole, parts = PartitionSpec(), PartitionSpec(None, SHARED_ALONG)
    # Each runs the same program on its own part. Left to the compiler, every device would gather all streams, and a
    # loop over batches of cells would fetch each batch from all of them.
    values = jax.shard_map(
        climbed,
        mesh=mesh,
        in_specs=(whole, whole, whole, parts),
        out_specs=parts,
        axis_names={SHARED_ALONG},
        check_vma=False,  # a metric's own loops may begin with what is alike everywhere
    )(params, runs, held, list(columns))
    return jax.lax.with_sharding_constraint(values, NamedSharding(mesh, whole))


def _climbed(
    sweep: Sweep,
    landings: tuple[int, ...],
    at_once: int,
    params: Params,
    runs: Runs,
    held: Any,
    columns: list[Int[Array, "m _ k"]],
) -> Float[Array, "m c"]:
    column = partial(_Climb(sweep, params, runs, held).column, landings, at_once)
    if len(columns[0]) == 1:
        return column([group[0] for group in columns])[None]
    return jax.lax.map(column, columns)


class _Climb(NamedTuple):
    sweep: Sweep
    params: Params
    runs: Runs
    held: Any

    def column(
        self, landings: tuple[int, ...], at_once: int, joining: list[Int[Array, "_ k"]]
    ) -> Float[Array, " c"]:
        """The metric of the cells that join at each landing."""
        each = partial(_side_by_side, at_once=at_once)
        # Where it is known what is read, the last layer is run only there, at the end.
        narrow = self.runs.read is not None and landings[-1] < self.sweep.config.n_layers
        top = self.sweep.config.n_layers - narrow
        cells = joining[0][:0]
        states: Any = None
        for landing, new, until in zip(landings, joining, (*landings[1:], top), strict=True):
            cells, begun = jnp.concatenate([cells, new]), self.begin(landing, new)
            states = begun if states is None else jnp.concatenate([states, begun])

            def turn(index: Array, states: Any, cells: Array = cells) -> Any:
                return each(partial(self.step, index), cells, states)

            if landing < until:
                states = jax.lax.fori_loop(landing, until, turn, states)
        return each(partial(self.end, narrow), cells, states)

    def begin(self, layer: int, cells: Int[Array, "c k"]) -> Float[Array, "c b t d"]:
        """The streams with which cells join."""

        def one(cell: Array, held: Any) -> Array:
            return self.sweep.start(self.params, held, layer, cell)

        streams = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(cells, self.held)
        return streams.astype(self.params.W_E.dtype)

    def step(
        self, index: Any, cell: Int[Array, " k"], states: Float[Array, "b t d"], at: Any = None
    ) -> Float[Array, "b r d"]:
        """One cell's streams after a layer; with `at` only those of these places."""
        sweep, own = self.sweep, jax.tree.map(lambda stacked: stacked[index], self.params.blocks)
        index = jnp.asarray(index, jnp.int32)

        def one(held: Any, state: Array) -> Array:
            edit = sweep.edit(held, own, index, cell)
            edit = edit if at is None else spread(edit, at, len(state))
            positions = jnp.arange(len(state), dtype=jnp.int32)
            how = {"layer": index, "tap": Tap((), edit, index), "compute": sweep.compute, "at": at}
            return block(own, sweep.config, state, positions, None, **how)[0]

        return jax.vmap(one)(self.held, states)

    def end(
        self, narrow: bool, cell: Int[Array, " k"], states: Float[Array, "b t d"]
    ) -> Float[Array, ""]:
        """One cell's metric; `narrow`: after a last layer that is run only where it is read."""
        sweep, read = self.sweep, self.runs.read
        if narrow:
            states = self.step(sweep.config.n_layers - 1, cell, states, read)
        elif read is not None:
            states = jax.vmap(pick, in_axes=(0, None))(states, read)

        def one(held: Any, state: Array) -> Array:
            return unembed(self.params, sweep.config, state, Tap((), sweep.last_edit(held, cell)))

        logits = jax.vmap(one)(self.held, states)
        arguments, keywords = self.runs.given
        metric = partial(sweep.metric, *arguments, **keywords)
        return scalar(metric, logits[0] if sweep.single else logits)


def _side_by_side(function: Callable[..., Array], *arrays: Array, at_once: int) -> Array:
    """The function of every row, as many rows as one batch as there is room for."""
    if len(arrays[0]) <= at_once:
        return jax.vmap(function)(*arrays)
    return jax.lax.map(lambda rows: function(*rows), arrays, batch_size=at_once)


def spread(edit: Edit, places: Int[Array, " r"], length: int) -> Edit:
    """The same edit for a layer in which only these places ask: it is given zeros for the others.

    That is right for an edit that changes each position by itself.
    """

    def narrow(site: Site, layer: Layer, value: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        if str(site) in ASKED:
            return edit(site, layer, value)
        axis = position_axis(str(site))
        rows = jnp.moveaxis(value, axis, 0)
        zeros = jnp.zeros((length, *rows.shape[1:]), value.dtype)
        full = jnp.moveaxis(zeros.at[places].set(rows), 0, axis)
        edited = edit(site, layer, full)
        if edited is full:
            return value
        return jnp.take(edited, places, axis, mode="fill")

    return narrow
