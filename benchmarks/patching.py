"""Activation patching, path patching and attribution: ours in one program, TransformerLens's a forward pass a patch."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case, stretched
from benchmarks.contest import Contender, Setting, Work, as_array, contest, enter, gather
from benchmarks.options import Options
from benchmarks.program import fresh_seed, prepare, random_tokens
from jaxformer.config import Config
from jaxformer.interp.attribution import attribution_patch, summed
from jaxformer.interp.metric import measure
from jaxformer.interp.patching import part_sizes, patch_sweep
from jaxformer.interp.paths import path_patch
from jaxformer.model.params import abstract, count, init
from jaxformer.model.transformer import forward
from train.plan.flops import forward_flops

TOLERANCE = 1e-3
"""Of what the patches change, relative to the largest change."""
PROMPT = 16
"""Tokens, where --seq names none."""
NODES = ("embed", "z", "mlp_out")
"""Whose attributions are taken: TransformerLens's nodes, whose heads are read at z."""
LAST = np.array([-1])


class Sweep(NamedTuple):
    """A sweep of `patch_sweep`."""

    site: str
    by: tuple[str, ...]


SWEEPS = {
    "stream: l t": Sweep("resid_pre", ("layer", "position")),
    "heads: l n": Sweep("z", ("layer", "head")),
    "heads: l n t": Sweep("z", ("layer", "head", "position")),
}


class Pair(NamedTuple):
    """One case's weights and its two prompts, [b t]."""

    case: Case
    params: Any
    clean: Any
    corrupted: Any
    notes: dict[str, Any]


def prompted(case: Case, options: Options) -> Iterator[Case]:
    """The case with one pair of short prompts, where the options name none."""
    batch = case.batch if options.batch else 1
    seq = case.seq if options.seq else PROMPT
    yield case._replace(config=stretched(case.config, seq), batch=batch, seq=seq)


def difference_of_logits(logits: Any) -> Any:
    """The metric, of [b t v] in either library: two entries' logits at the last position, compared."""
    return (logits[..., -1, 0] - logits[..., -1, 1]).mean()


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """For each sweep, for all paths and for attribution: one row per implementation.

    All run the same prompts on the same weights. What a patch changes is compared before anything is timed.
    """
    config, batch, seq = case.config, case.batch, case.seq
    seed = fresh_seed()
    params = init(config, jax.random.key(0), jnp.dtype(setting.dtype))
    clean, corrupted = random_tokens(config, 2 * batch, seq, seed=seed).reshape(2, batch, seq)
    notes = {"kernel": "einsum", "seed": seed, "budget_bytes": setting.options.budget * 2**20}
    pair = Pair(case, params, clean, corrupted, notes)
    for name, sweep in SWEEPS.items():
        yield from swept(name, sweep, pair, setting)
    if pairs_of_heads(config) <= most_patches(config):
        yield from every_path(pair, setting)
    else:
        setting.say(f"paths skipped at {case.name}: {pairs_of_heads(config)} pairs of heads")
    yield from attributed(pair, setting)


def swept(name: str, sweep: Sweep, pair: Pair, setting: Setting) -> Iterator[dict[str, Any]]:
    """Ours takes every patch; a peer, where they are many, some that are spread over them all."""
    config = pair.case.config
    sizes = part_sizes(sweep.site, sweep.by, config, pair.case.seq)
    cells = np.array(list(np.ndindex(*(sizes[axis] for axis in sweep.by))))
    most = most_patches(config)
    some = cells[np.unique(np.linspace(0, len(cells) - 1, min(most, len(cells))).astype(int))]

    def door(params: Any, clean: Any, corrupted: Any) -> Any:
        return patch_sweep(
            params, config, clean, corrupted, difference_of_logits, sweep.site, sweep.by,
            read=LAST, memory=pair.notes["budget_bytes"], progress=False,
        )  # fmt: skip

    ours = entered(name, door, pair, setting)
    ours = ours._replace(result=ours.result[tuple(some.T)])
    peers = joined(setting, "patching", pair, site=sweep.site, by=sweep.by, cells=some)
    yield from patched(name, ours, len(cells), peers, len(some), pair, setting)


def every_path(pair: Pair, setting: Setting) -> Iterator[dict[str, Any]]:
    """From every head to the queries of every later one."""
    config = pair.case.config
    later = np.tri(config.n_layers, k=-1, dtype=bool).T[:, None, :, None]
    later = np.broadcast_to(later, (config.n_layers, config.n_heads) * 2)

    def door(params: Any, clean: Any, corrupted: Any) -> Any:
        return path_patch(
            params, config, clean, corrupted, difference_of_logits, "q",
            read=LAST, memory=pair.notes["budget_bytes"], progress=False,
        )  # fmt: skip

    name, number = "paths: l n l n", pairs_of_heads(config)
    ours = entered(name, door, pair, setting)
    ours = ours._replace(result=as_array(ours.result)[later])
    peers = [
        peer._replace(result=as_array(peer.result)[later])
        for peer in joined(setting, "paths", pair)
    ]
    yield from patched(name, ours, number, peers, number, pair, setting)


def attributed(pair: Pair, setting: Setting) -> Iterator[dict[str, Any]]:
    """Every node's attribution in one program; ours beside one forward pass to the same logits."""
    config = pair.case.config

    def one(params: Any, clean: Any, corrupted: Any) -> Any:
        scores = attribution_patch(
            params, config, clean, corrupted, difference_of_logits, NODES, read=jnp.asarray(LAST)
        )
        heads = summed({"z": scores["z"]}, ("layer", "head", "position"))["z"]
        rest = [scores[site].sum(-1) for site in ("embed", "mlp_out")]
        return jnp.concatenate([part.ravel() for part in (heads, *rest)])

    def every(params: Any, clean: Any, corrupted: Any) -> Any:
        return jax.vmap(partial(one, params))(clean, corrupted).mean(0)

    def passed(params: Any, clean: Any, corrupted: Any) -> Any:
        del clean
        read = jnp.asarray(LAST)
        return jax.vmap(lambda tokens: forward(params, config, tokens, read=read).logits)(corrupted)

    name = "all nodes"
    ours = entered(name, every, pair, setting, compiled=True)
    single = entered("one pass", passed, pair, setting, compiled=True)
    single = single._replace(name="one forward pass", exact=False)
    peers = joined(setting, "attribution", pair)
    found = list(contest(ours, [single, *peers], work(pair, 1), TOLERANCE, setting))
    for row in found:
        own = {"task": name, "budget_bytes": None}
        if row["implementation"] == "jaxformer":
            own["over_forward"] = 1 / found[1]["time_over_ours"]
        yield row | own


def entered(
    name: str, door: Callable[..., Any], pair: Pair, setting: Setting, *, compiled: bool = False
) -> Contender:
    """Ours: the door as a user calls it, or the whole as one compiled program; what that takes is known ahead."""
    shapes = (
        abstract(pair.case.config, setting.dtype),
        *(jax.ShapeDtypeStruct(pair.clean.shape, jnp.int32),) * 2,
    )
    what = f"{name}, {pair.case.name}"
    program = prepare(what, door, shapes, device=setting.device, options=setting.options)
    run = program.run if compiled or setting.options.xla else door
    weights = sum(array.nbytes for array in jax.tree.leaves(pair.params))
    notes = pair.notes | program.notes() | {"held_bytes": program.peak_bytes - weights}
    arguments = pair.params, pair.clean, pair.corrupted
    return enter("jaxformer", lambda: partial(run, *arguments), **notes)


def joined(setting: Setting, workload: str, pair: Pair, **options: Any) -> list[Contender]:
    """The peers that do this."""
    arguments = pair.case.config, pair.params, pair.clean, pair.corrupted, setting.device
    return gather(setting, workload, arguments, metric=difference_of_logits, **options)


def patched(
    name: str,
    ours: Contender,
    number: int,
    peers: list[Contender],
    some: int,
    pair: Pair,
    setting: Setting,
) -> Iterator[dict[str, Any]]:
    """The rows of one sweep; times are compared per patch."""
    base = as_array(measure(pair.params, pair.case.config, pair.corrupted, difference_of_logits))
    ours, *peers = [
        one._replace(result=as_array(one.result) - base, work=work(pair, patches))
        for one, patches in ((ours, number), *((peer, some) for peer in peers))
    ]
    options = setting.options
    if ours.first_seconds > 3 * options.seconds:  # minutes a call: the two are alternated once
        setting = setting._replace(options=dataclasses.replace(options, repeats=1))
    for row in contest(ours, peers, work(pair, number), TOLERANCE, setting):
        patches = number if row["implementation"] == "jaxformer" else some
        yield row | {"task": name, "patches": patches} | per_patch(row, patches, number)


def per_patch(row: dict[str, Any], patches: int, ours: int) -> dict[str, Any]:
    """A row's time for one patch, and its ratio to ours."""
    if "median" not in row:
        return {}
    figures = {f"patch_{end}": row[end] / patches for end in ("median", "low", "high")}
    for key in ("time_over_ours", "time_over_ours_low", "time_over_ours_high"):
        figures[key] = row[key] * ours / patches
    return figures


def work(pair: Pair, patches: int) -> Work:
    """Of so many whole forward passes that unembed one position: what a loop over them would do."""
    _, config, batch, seq = pair.case
    unread = 2 * (seq - 1) * config.d_model * config.n_vocab
    passes = batch * patches
    return Work(passes * seq, passes * (forward_flops(config, seq) - unread), traffic=0)


def most_patches(config: Config) -> int:
    """So many a peer takes: all of a small model's, and of a large one's some seconds' worth."""
    return 256 if count(config) < 10**7 else 24


def pairs_of_heads(config: Config) -> int:
    """A head and one in a later layer."""
    return math.comb(config.n_layers, 2) * config.n_heads**2
