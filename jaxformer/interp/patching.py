"""Activation patching: run the model on one text, with a part of its inside taken from another, and see what changes.

Both functions run the `corrupted` text and take parts of the `clean` run, as TransformerLens does: a part that carries
what tells the two texts apart moves the metric from its corrupted towards its clean value.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.interp.edit import patch, patch_layers
from jaxformer.interp.engine.climb import Runs, Sweep, show
from jaxformer.interp.engine.parts import axes_by, letters_of
from jaxformer.interp.engine.sweep import GIB, check_door, run
from jaxformer.interp.metric import Metric
from jaxformer.model.params import Block, Params
from jaxformer.model.sites import READ, WHOLE, Edit, Layer, keep
from jaxformer.model.tap import Tap, check_capture
from jaxformer.model.transformer import embed


def patch_sweep(
    params: Params,
    config: Config,
    clean: Int[Array, "*b t"],
    corrupted: Int[Array, "*b t"],
    metric: Metric,
    site: str,
    by: Sequence[str] = ("layer", "position"),
    *,
    read: Any = None,
    memory: int = GIB,
    progress: bool | None = None,
    mesh: Mesh | None = None,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, "..."]:
    """The metric of the corrupted run with each part of a site patched from the clean run, one part at a time.

    `by` names the parts: an axis that it names is taken apart, one that it does not is patched whole, and without
    "layer" all layers are patched at once. The result has an axis for each name. TransformerLens's functions are
    choices of site and by: get_act_patch_resid_pre is ("resid_pre", ("layer", "position")), attn_head_out_all_pos
    ("z", ("layer", "head")), attn_head_pattern_dest_src_pos ("pattern", ("layer", "head", "position", "source")).

    No part runs the layers before its own again, and with `read` the last layer is run only where it is read. Parts
    share a batch, as many as `memory` allows, and all are one compiled program.

    As under `jax.jit`, a metric is compiled when its function is first seen, and what that reads from outside, an
    object's own attributes too, is what it was then. To change an answer from call to call, give it to the metric as
    an argument: `jax.tree_util.Partial(logit_of, answer)` is called as `logit_of(answer, logits)` and compiled once.

    Source: Vig et al. 2020, "Causal Mediation Analysis"; Meng et al. 2022, "Locating and Editing Factual
    Associations", §2.1; Heimersheim & Nanda 2024, "How to use and interpret activation patching".

    Args:
        clean: tokens of the run to take from, or a batch of them.
        corrupted: as many, of the run to patch.
        metric: from the logits of a sequence `t v`, or of a batch `b t v`, to one number; a function, or a
            `jax.tree_util.Partial` of one and arrays.
        site: any that `forward` shows here.
        by: "layer", "position" (of the query, where there are two; at final_scale, final and logits: of `read`),
            "source", "head" (key/value heads at k and v), "neuron".
        read: the places along t whose logits the metric gets, as in `forward`: with one of them, most of the
            unembedding is left out.
        memory: the most bytes that a device holds at once, the parameters not counted.
        progress: show a bar on standard error; None: if it will take long. Inside traced code there is none.
        mesh: devices to spread the patches over, along its axis "data", on which each has its share of them; the
            other axes are for the parameters. The numbers are the same, up to rounding.
        compute: dtype and kernel; the rest is the sweep's own.

    Raises:
        ValueError: while tracing: parameters of another model, or with layers in a list; texts of different lengths,
            tokens outside the vocabulary, a place to read at that is not there; a site that this model or kernel does
            not show, a name that the site has no axis for, a metric that is no scalar, too little memory; a
            mesh without an axis "data", or of other devices than those on which an array was put.

    >>> import jax, jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> patch_sweep(
    ...     params, config, jnp.array([3, 1, 4]), jnp.array([2, 1, 4]), lambda logits: logits[-1, 3], "resid_pre"
    ... ).shape
    (2, 3)
    """
    runs, function, single = check_door(params, config, clean, corrupted, metric, read)
    by = by if isinstance(by, str) else tuple(by)
    check_capture((site,), config, compute)
    shown = runs.read if site in READ and runs.read is not None else runs.corrupted[0]
    sizes = part_sizes(site, by, config, len(shown))
    shape = tuple(sizes.values())
    names = ("layer", *(name for name in by if name != "layer"))
    grid = np.indices([sizes.get(name, 1) for name in names], np.int32)
    cells = grid.reshape(len(names), -1).T
    if site in READ:
        cells[:, 0] = config.n_layers  # there the corrupted run is as it was
    places = np.arange(math.prod(shape)).reshape([sizes.get(name, 1) for name in by])
    places = places.transpose([by.index(name) for name in names if name in by]).ravel()
    sweep = _Patches(config, function, single, compute, site, names[1:], "layer" in by)
    return run(
        sweep, params, runs, cells, shape, places, memory=memory, progress=progress, mesh=mesh
    )


@dataclasses.dataclass(frozen=True)
class _Patches(Sweep):
    site: str
    names: tuple[str, ...]
    """what the numbers of a cell after its layer are"""
    one_layer: bool

    @property
    def late(self) -> bool:
        """Whether layers come before what it changes, and none after: it then begins where they end."""
        return self.site in READ and self.config.n_layers > 0

    def record(self, params: Params, runs: Runs) -> Any:
        values = show(self, params, runs.clean, runs.read, self.site)[self.site]
        if self.site not in WHOLE:
            return values, show(self, params, runs.corrupted, runs.read, "resid_pre")["resid_pre"]
        if self.late:
            after = show(self, params, runs.corrupted, runs.read, "resid_post")["resid_post"]
            return values, after[:, -1]
        return values, runs.corrupted

    def start(self, params: Params, held: Any, layer: int, cell: Int[Array, " k"]) -> Array:
        _, begun = held
        if self.site not in WHOLE:
            return begun[layer]
        if self.late:
            return begun
        positions = jnp.arange(len(begun), dtype=jnp.int32)
        return embed(params, self.config, begun, positions, Tap((), self.last_edit(held, cell)))

    def edit(self, held: Any, own: Block, index: Layer, cell: Int[Array, " k"]) -> Edit:
        if self.site in WHOLE:
            return keep
        edit = patch_layers(self.site, self._index(cell), held[0])
        return dataclasses.replace(edit, layer=cell[0]) if self.one_layer else edit

    def last_edit(self, held: Any, cell: Int[Array, " k"]) -> Edit:
        if self.site not in WHOLE:
            return keep
        return patch(self.site, None, self._index(cell), held[0])

    def _index(self, cell: Int[Array, " k"]) -> dict[str, Array]:
        return dict(zip(self.names, cell[1:], strict=True))


def part_sizes(site: str, by: Sequence[str], config: Config, length: int) -> dict[str, int]:
    """How many parts each name of `by` takes a site apart into.

    Raises:
        ValueError: as `axes_by`; a site of layers in a model that has none.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> part_sizes("z", ("layer", "head"), config, 7)
    {'layer': 2, 'head': 2}
    """
    axes, letters = axes_by(site, by), letters_of(site)
    if site not in WHOLE and not config.n_layers:
        raise ValueError(f"no layer has a {site}: this model has n_layers=0")
    return {
        name: length if letters[axis] in "ts" else config.sizes[letters[axis]]
        for name, axis in zip(by, axes, strict=True)
    }
