"""Activation patching: run the model on one text with an activation taken from another, and measure the change.

The patched run is that of the `corrupted` text, with activations of the `clean` run, as in TransformerLens. An
activation that carries the difference between the texts moves the metric from its corrupted towards its clean value.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.edits import check_capture
from jaxformer.interp.edit import patch, patch_layers
from jaxformer.interp.engine.axes import axes_by, letters_of
from jaxformer.interp.engine.passes import Runs, Sweep, capture
from jaxformer.interp.engine.sweep import GIB, check_runs, run
from jaxformer.interp.metric import Metric
from jaxformer.model.params import Block, Params
from jaxformer.model.tap import Tap
from jaxformer.model.transformer import embed
from jaxformer.sites import LOGIT_SITES, MODEL_SITES, EditFunction, Layer, identity


def patch_sweep(
    params: Params,
    config: Config,
    clean: Int[Array, "*b t"],
    corrupted: Int[Array, "*b t"],
    metric: Metric,
    site: str,
    by: Sequence[str] = ("layer", "position"),
    *,
    logits_at: Any = None,
    memory: int = GIB,
    progress: bool | None = None,
    mesh: Mesh | None = None,
    compute: Compute = Compute(),
) -> Float[Array, "..."]:
    """Return the metric of the corrupted run for each part of a site patched from the clean run, one part at a time.

    The parts are the indices of the axes in `by`; a patch covers every other axis, and all layers if `by` lacks
    "layer". The result has an axis for each name. TransformerLens's functions are choices of site and by:
    get_act_patch_resid_pre is ("resid_pre", ("layer", "position")), attn_head_out_all_pos is ("z", ("layer", "head")),
    attn_head_pattern_dest_src_pos is ("pattern", ("layer", "head", "position", "source")).

    A patch does not run the layers before its own again, and with `logits_at` the last layer runs only at those
    positions. As many patches as `memory` allows run in one batch, and all run in one compiled program.

    As under `jax.jit`, the metric's function is compiled when it is first seen: values that it reads from outside, also
    from attributes of an object, are constants from then on. A value that changes between calls must be an argument:
    `jax.tree_util.Partial(logit_of, answer)` is called as `logit_of(answer, logits)` and compiled once.

    Source: Vig et al. 2020, "Causal Mediation Analysis"; Meng et al. 2022, "Locating and Editing Factual
    Associations", §2.1; Heimersheim & Nanda 2024, "How to use and interpret activation patching".

    Args:
        clean: tokens of the run to patch from, one sequence or a batch.
        corrupted: tokens of the run to patch, of the same shape.
        metric: maps the logits of a sequence `t v`, or of a batch `b t v`, to one number; a function, or a
            `jax.tree_util.Partial` of a function and arrays.
        site: any site that `forward` can capture for this model.
        by: "layer", "position" (of the query; at final_scale, final and logits, an index into `logits_at`), "source"
            (of the key), "head" (at k and v, key/value head), "neuron".
        logits_at: the positions whose logits the metric gets, as in `forward`; fewer positions cost less.
        memory: peak memory of each device in bytes, without the parameters.
        progress: show a progress bar on standard error; None: if the sweep takes long. Never inside traced code.
        mesh: shard the patches over its axis "data"; the other axes are for the parameters. The numbers stay the same,
            up to rounding.
        compute: only its dtype and kernel are used.

    Raises:
        ValueError: parameters of another model, or unstacked; runs of different lengths, tokens outside the vocabulary,
            logits_at out of range; a site that this model or kernel does not have, a name that the site has no axis
            for, a metric that is not a scalar, too little memory; a mesh without an axis "data", or with other devices
            than the arrays.

    >>> import jax, jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> patch_sweep(
    ...     params, config, jnp.array([3, 1, 4]), jnp.array([2, 1, 4]), lambda logits: logits[-1, 3], "resid_pre"
    ... ).shape
    (2, 3)
    """
    runs, function, single = check_runs(params, config, clean, corrupted, metric, logits_at)
    by = by if isinstance(by, str) else tuple(by)
    check_capture((site,), config, compute)
    positions = runs.logits_at if site in LOGIT_SITES else None
    length = runs.corrupted.shape[1] if positions is None else len(positions)
    sizes = part_sizes(site, by, config, length)
    shape = tuple(sizes.values())
    names = ("layer", *(name for name in by if name != "layer"))
    grid = np.indices([sizes.get(name, 1) for name in names], np.int32)
    cells = grid.reshape(len(names), -1).T
    if site in LOGIT_SITES:
        cells[:, 0] = config.n_layers  # they skip all layers
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
    """the axes that the integers of a cell index, after its layer"""
    one_layer: bool

    @property
    def after_layers(self) -> bool:
        """Whether the site comes after all layers, so that the cells skip them."""
        return self.site in LOGIT_SITES and self.config.n_layers > 0

    def record(self, params: Params, runs: Runs) -> Any:
        capture_sites = partial(capture, self, params)
        values = capture_sites(runs.clean, runs.logits_at, self.site)[self.site]
        if self.site not in MODEL_SITES:
            streams = capture_sites(runs.corrupted, runs.logits_at, "resid_pre")
            return values, streams["resid_pre"]
        if self.after_layers:
            streams = capture_sites(runs.corrupted, runs.logits_at, "resid_post")
            return values, streams["resid_post"][:, -1]
        return values, runs.corrupted

    def start(self, params: Params, recorded: Any, layer: int, cell: Int[Array, " field"]) -> Array:
        _, corrupted = recorded
        if self.site not in MODEL_SITES:
            return corrupted[layer]
        if self.after_layers:
            return corrupted
        positions = jnp.arange(len(corrupted), dtype=jnp.int32)
        tap = Tap((), self.last_edit(recorded, cell))
        return embed(params, self.config, corrupted, positions, tap=tap)

    def edit(
        self, recorded: Any, params: Block, layer: Layer, cell: Int[Array, " field"]
    ) -> EditFunction:
        if self.site in MODEL_SITES:
            return identity
        edit = patch_layers(self.site, self._index(cell), recorded[0])
        return dataclasses.replace(edit, layer=cell[0]) if self.one_layer else edit

    def last_edit(self, recorded: Any, cell: Int[Array, " field"]) -> EditFunction:
        if self.site not in MODEL_SITES:
            return identity
        return patch(self.site, None, self._index(cell), recorded[0])

    def _index(self, cell: Int[Array, " field"]) -> dict[str, Array]:
        return dict(zip(self.names, cell[1:], strict=True))


def part_sizes(site: str, by: Sequence[str], config: Config, length: int) -> dict[str, int]:
    """Return the number of parts along each axis in `by`.

    Raises:
        ValueError: as `axes_by`; a site of a layer in a model without layers.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> part_sizes("z", ("layer", "head"), config, 7)
    {'layer': 2, 'head': 2}
    """
    axes, letters = axes_by(site, by), letters_of(site)
    if site not in MODEL_SITES and not config.n_layers:
        raise ValueError(f"no layer has a {site}: this model has n_layers=0")
    return {
        name: length if letters[axis] in "ts" else config.sizes[letters[axis]]
        for name, axis in zip(by, axes, strict=True)
    }
