"""Activation patching: run the model on one text, with a part of its inside taken from another, and see what changes.

Both functions run the `corrupted` text and take parts of the `clean` run, as TransformerLens does: a part that carries
what tells the two texts apart moves the metric from its corrupted towards its clean value.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.interp.cells import (
    GIB,
    How,
    Metric,
    cells_at_once,
    check_door,
    chunks,
    run_chunks,
    scalar,
    show,
    shows_progress,
)
from jaxformer.interp.edit import patch, patch_layers
from jaxformer.interp.parts import axis_of
from jaxformer.interp.resume import forward_from
from jaxformer.params import Params
from jaxformer.sites import AXES, WHOLE, Edit, check_capture
from jaxformer.transformer import check_read, forward


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
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, "..."]:
    """The metric of the corrupted run with each part of a site patched from the clean run, one part at a time.

    `by` names the parts: an axis that it names is taken apart, one that it does not is patched whole, and without
    "layer" all layers are patched at once. The result has an axis for each name. TransformerLens's functions are
    choices of site and by: get_act_patch_resid_pre is ("resid_pre", ("layer", "position")), attn_head_out_all_pos
    ("z", ("layer", "head")), attn_head_pattern_dest_src_pos ("pattern", ("layer", "head", "position", "source")).

    The layers before the patched one are not run again. All parts of a layer are one batch, as many at a time as
    `memory` allows, and all are one compiled program; another metric, as a function, is compiled anew.

    Source: Vig et al. 2020, "Causal Mediation Analysis"; Meng et al. 2022, "Locating and Editing Factual
    Associations", §2.1; Heimersheim & Nanda 2024, "How to use and interpret activation patching".

    Args:
        params: as `init` gives them.
        config: their architecture.
        clean: tokens of the run to take from, or a batch of them.
        corrupted: as many, of the run to patch.
        metric: from the logits of a sequence `t v`, or of a batch `b t v`, to one number.
        site: any that `forward` shows here.
        by: "layer", "position" (of the query, where there are two), "source", "head" (key/value heads at k and v),
            "neuron".
        read: the places along t whose logits the metric gets, as in `forward`: with one of them, most of the
            unembedding is left out.
        memory: the most bytes to hold at once, the parameters not counted.
        progress: show a bar on standard error; None: if it will take long. Inside traced code there is none.
        compute: how to run it.

    Raises:
        ValueError: while tracing: texts of different lengths, a site that this model or kernel does not show, a name
            that the site has no axis for, a metric that is no scalar, too little memory.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> patch_sweep(
    ...     params, config, jnp.array([3, 1, 4]), jnp.array([2, 1, 4]), lambda logits: logits[-1, 3], "resid_pre"
    ... ).shape
    (2, 3)
    """
    tokens = check_door(params, clean, corrupted, config)
    check_capture((site,), config, compute)
    sizes = part_sizes(site, by, config, tokens[1].shape[1])
    how = How(config, metric, jnp.ndim(corrupted) == 1, compute)
    read = None if read is None else check_read(read, tokens[1].shape[1])
    order = sorted(by, key=lambda name: name != "layer")
    others = tuple(name for name in order if name != "layer")
    every = list(np.ndindex(*(sizes[name] for name in others)))
    cells = np.array(every, np.int32).reshape(len(every), len(others))
    groups = [(layer, cells) for layer in range(sizes.get("layer", 1))]

    start = () if site in WHOLE else ("resid_pre",)
    runs = show(params, tokens, read, how, ((site,), start))
    values = runs[0][site]
    begun = runs[1]["resid_pre"] if start else tokens[1]
    most = cells_at_once(how, tokens[1], read, memory, (values, begun))
    program = partial(
        _sweep, params, begun, values, read,
        how=how, site=site, names=others, one_layer="layer" in by,
    )  # fmt: skip
    shown = shows_progress(
        progress, how, (params, tokens), len(groups) * len(cells), tokens[1].size
    )
    shape = tuple(sizes[name] for name in by)
    places = np.arange(math.prod(shape)).reshape(shape)
    places = places.transpose([list(by).index(name) for name in order]).ravel()
    return run_chunks(program, chunks(groups, most), places, shape, progress=shown)


@partial(jax.jit, static_argnames=("how", "site", "names", "one_layer"))
def _sweep(
    params: Params,
    begun: Any,
    values: Any,
    read: Any,
    layers: Any,
    cells: Any,
    *,
    how: How,
    site: str,
    names: tuple[str, ...],
    one_layer: bool,
) -> Float[Array, "m c"]:
    """The metric of every cell of every chunk; chunk after chunk, a chunk's cells side by side."""

    def logits(layer: Any, index: dict[str, Any], begun: Array, values: Array) -> Array:
        if site in WHOLE:
            edit: Edit = patch(site, None, index, values)
            return forward(
                params, how.config, begun, edit=edit, read=read, compute=how.compute
            ).logits
        edit = (
            patch(site, layer, index, values[layer])
            if one_layer
            else patch_layers(site, index, values)
        )
        return forward_from(
            params, how.config, begun[layer], layer,
            edit=edit, read=read, narrow=read is not None, compute=how.compute,
        )  # fmt: skip

    def one_chunk(chunk: tuple[Array, Array]) -> Array:
        layer, cells = chunk

        def one(cell: Int[Array, " k"]) -> Array:
            index = dict(zip(names, cell, strict=True))
            every = jax.vmap(partial(logits, layer, index))(begun, values)
            return scalar(how.metric, every[0] if how.single else every)

        return jax.vmap(one)(cells)

    return jax.lax.map(one_chunk, (layers, cells))


def part_sizes(site: str, by: Sequence[str], config: Config, length: int) -> dict[str, int]:
    """How many parts each name of `by` takes a site apart into.

    Raises:
        ValueError: a name that the site has no axis for, or one named twice.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> part_sizes("z", ("layer", "head"), config, 7)
    {'layer': 2, 'head': 2}
    """
    if isinstance(by, str):
        raise ValueError(f"by={by!r} is one string; give a tuple of names: ({by!r},)")
    letters, sizes = AXES[site].split(), {}
    for name in by:
        if name in sizes:
            raise ValueError(f"by names {name!r} twice")
        if name == "layer" and site in WHOLE:
            raise ValueError(f"{site} belongs to no layer; leave 'layer' out of by={tuple(by)}")
        if name == "layer":
            sizes[name] = config.n_layers
        else:
            letter = letters[axis_of(site, name, *(() if site in WHOLE else ("layer",)))]
            sizes[name] = length if letter in "ts" else config.sizes[letter]
    return sizes
