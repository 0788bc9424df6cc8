"""The patching workload: activation patching, path patching and attribution.

Jaxformer runs all patches in one program; TransformerLens runs one forward pass per patch.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case, extended
from benchmarks.comparison import Contender, Setting, Work, as_array, compare, enter, enter_peers
from benchmarks.options import Options
from benchmarks.program import new_seed, prepare, random_tokens
from jaxformer.config import Config
from jaxformer.interp.attribution import attribution_patch, summed
from jaxformer.interp.metric import measure
from jaxformer.interp.patching import part_sizes, patch_sweep
from jaxformer.interp.paths import path_patch
from jaxformer.model.params import abstract, count, init
from jaxformer.model.transformer import forward
from train.plan.flops import forward_flops

TOLERANCE = 1e-3
"""The largest allowed difference of the metric's changes, relative to the largest change."""
PROMPT = 16
"""The default prompt length."""
NODES = ("embed", "z", "mlp_out")
"""The sites of TransformerLens's nodes; heads are taken at z."""
LAST = np.array([-1])


class Sweep(NamedTuple):
    """The arguments of one `patch_sweep`."""

    site: str
    by: tuple[str, ...]


SWEEPS = {
    "stream: l t": Sweep("resid_pre", ("layer", "position")),
    "heads: l n": Sweep("z", ("layer", "head")),
    "heads: l n t": Sweep("z", ("layer", "head", "position")),
}


class Pair(NamedTuple):
    """The weights of a case and its two batches of prompts, [b t]."""

    case: Case
    params: Any
    clean: Any
    corrupted: Any
    notes: dict[str, Any]


def patching_cases(case: Case, options: Options) -> Iterator[Case]:
    """Yield the case with one pair of short prompts, where the options give no other shape."""
    batch = case.batch if options.batch else 1
    seq = case.seq if options.seq else PROMPT
    yield case._replace(config=extended(case.config, seq), batch=batch, seq=seq)


def difference_of_logits(logits: Any) -> Any:
    """The metric, for logits [b t v] of either library: the difference of two logits at the last position."""
    return (logits[..., -1, 0] - logits[..., -1, 1]).mean()


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield one row per implementation for each sweep, for all paths and for attribution.

    All use the same prompts and weights. The changes of the metric are compared before anything is timed.
    """
    config, batch, seq = case.config, case.batch, case.seq
    seed = new_seed()
    params = init(config, jax.random.key(0), jnp.dtype(setting.dtype))
    clean, corrupted = random_tokens(config, 2 * batch, seq, seed=seed).reshape(2, batch, seq)
    notes = {"kernel": "einsum", "seed": seed, "budget_bytes": setting.options.budget * 2**20}
    pair = Pair(case, params, clean, corrupted, notes)
    for name, sweep in SWEEPS.items():
        yield from sweep_rows(name, sweep, pair, setting)
    if pairs_of_heads(config) <= most_patches(config):
        yield from path_rows(pair, setting)
    else:
        setting.say(
            f"paths skipped at {case.name}: {pairs_of_heads(config)} pairs of heads are too many for a peer"
        )
    yield from attribution_rows(pair, setting)


def sweep_rows(name: str, sweep: Sweep, pair: Pair, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the rows of one sweep. Jaxformer runs every patch; a peer runs an even sample if there are many."""
    config = pair.case.config
    sizes = part_sizes(sweep.site, sweep.by, config, pair.case.seq)
    cells = np.array(list(np.ndindex(*(sizes[axis] for axis in sweep.by))))
    most = most_patches(config)
    sample = cells[np.unique(np.linspace(0, len(cells) - 1, min(most, len(cells))).astype(int))]

    def call(params: Any, clean: Any, corrupted: Any) -> Any:
        return patch_sweep(
            params, config, clean, corrupted, difference_of_logits, sweep.site, sweep.by,
            logits_at=LAST, memory=pair.notes["budget_bytes"], progress=False,
        )  # fmt: skip

    ours = enter_jaxformer(name, call, pair, setting)
    ours = ours._replace(result=ours.result[tuple(sample.T)])
    peers = enter_metric_peers(
        setting, "patching", pair, site=sweep.site, by=sweep.by, cells=sample
    )
    yield from patch_rows(name, ours, len(cells), peers, len(sample), pair, setting)


def path_rows(pair: Pair, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the rows of path patching, from every head to the queries of every later head."""
    config = pair.case.config
    later = np.tri(config.n_layers, k=-1, dtype=bool).T[:, None, :, None]
    later = np.broadcast_to(later, (config.n_layers, config.n_heads) * 2)

    def call(params: Any, clean: Any, corrupted: Any) -> Any:
        return path_patch(
            params, config, clean, corrupted, difference_of_logits, "q",
            logits_at=LAST, memory=pair.notes["budget_bytes"], progress=False,
        )  # fmt: skip

    name, number = "paths: l n l n", pairs_of_heads(config)
    ours = enter_jaxformer(name, call, pair, setting)
    ours = ours._replace(result=as_array(ours.result)[later])
    peers = [
        peer._replace(result=as_array(peer.result)[later])
        for peer in enter_metric_peers(setting, "paths", pair)
    ]
    yield from patch_rows(name, ours, number, peers, number, pair, setting)


def attribution_rows(pair: Pair, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the rows of attribution to every node, and one of a single forward pass to the same logits."""
    config, last = pair.case.config, jnp.asarray(LAST)

    def one(params: Any, clean: Any, corrupted: Any) -> Any:
        scores = attribution_patch(
            params, config, clean, corrupted, difference_of_logits, NODES, logits_at=last
        )
        heads = summed({"z": scores["z"]}, ("layer", "head", "position"))["z"]
        rest = [scores[site].sum(-1) for site in ("embed", "mlp_out")]
        return jnp.concatenate([part.ravel() for part in (heads, *rest)])

    def every(params: Any, clean: Any, corrupted: Any) -> Any:
        return jax.vmap(partial(one, params))(clean, corrupted).mean(0)

    def one_pass(params: Any, clean: Any, corrupted: Any) -> Any:
        del clean
        run = partial(forward, params, config, logits_at=last)
        return jax.vmap(lambda tokens: run(tokens).logits)(corrupted)

    name = "all nodes"
    ours = enter_jaxformer(name, every, pair, setting, compiled=True)
    single = enter_jaxformer("one pass", one_pass, pair, setting, compiled=True)
    single = single._replace(name="one forward pass", exact=False)
    peers = enter_metric_peers(setting, "attribution", pair)
    found = list(compare(ours, [single, *peers], work(pair, 1), TOLERANCE, setting))
    for row in found:
        own = {"task": name, "budget_bytes": None}
        if row["implementation"] == "jaxformer":
            own["over_forward"] = 1 / found[1]["time_over_ours"]
        yield row | own


def enter_jaxformer(
    name: str, call: Callable[..., Any], pair: Pair, setting: Setting, *, compiled: bool = False
) -> Contender:
    """Enter jaxformer: `call` itself, or with `compiled` its compiled program. Its memory is checked before it runs."""
    shapes = (
        abstract(pair.case.config, setting.dtype),
        *(jax.ShapeDtypeStruct(pair.clean.shape, jnp.int32),) * 2,
    )
    what = f"{name}, {pair.case.name}"
    program = prepare(what, call, shapes, device=setting.device, options=setting.options)
    run = program.run if compiled or setting.options.xla else call
    weights = sum(array.nbytes for array in jax.tree.leaves(pair.params))
    notes = pair.notes | program.notes() | {"held_bytes": program.peak_bytes - weights}
    arguments = pair.params, pair.clean, pair.corrupted
    return enter("jaxformer", lambda: partial(run, *arguments), **notes)


def enter_metric_peers(
    setting: Setting, workload: str, pair: Pair, **options: Any
) -> list[Contender]:
    """Enter the peers that support this workload."""
    arguments = pair.params, pair.case.config, pair.clean, pair.corrupted, setting.device
    return enter_peers(setting, workload, arguments, metric=difference_of_logits, **options)


def patch_rows(
    name: str,
    ours: Contender,
    number: int,
    peers: list[Contender],
    peer_number: int,
    pair: Pair,
    setting: Setting,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one sweep; times are compared per patch."""
    base = as_array(measure(pair.params, pair.case.config, pair.corrupted, difference_of_logits))
    ours, *peers = [
        one._replace(result=as_array(one.result) - base, work=work(pair, patches))
        for one, patches in ((ours, number), *((peer, peer_number) for peer in peers))
    ]
    options = setting.options
    if ours.first_seconds > 3 * options.seconds:  # a call takes minutes: time one round
        setting = setting._replace(options=dataclasses.replace(options, repeats=1))
    for row in compare(ours, peers, work(pair, number), TOLERANCE, setting):
        patches = number if row["implementation"] == "jaxformer" else peer_number
        yield row | {"task": name, "patches": patches} | per_patch(row, patches, number)


def per_patch(row: dict[str, Any], patches: int, ours: int) -> dict[str, Any]:
    """Return a row's time per patch, and its ratio to jaxformer's."""
    if "median" not in row:
        return {}
    figures = {f"patch_{end}": row[end] / patches for end in ("median", "low", "high")}
    for key in ("time_over_ours", "time_over_ours_low", "time_over_ours_high"):
        figures[key] = row[key] * ours / patches
    return figures


def work(pair: Pair, patches: int) -> Work:
    """Return the work of a loop over the patches: one forward pass each, which unembeds one position."""
    _, config, batch, seq = pair.case
    unread = 2 * (seq - 1) * config.d_model * config.n_vocab
    passes = batch * patches
    return Work(passes * seq, passes * (forward_flops(config, seq) - unread), traffic=0)


def most_patches(config: Config) -> int:
    """Return the most patches that a peer runs, so that a large model takes seconds."""
    return 256 if count(config) < 10**7 else 24


def pairs_of_heads(config: Config) -> int:
    """Return the number of pairs of a head and a head of a later layer."""
    return math.comb(config.n_layers, 2) * config.n_heads**2
