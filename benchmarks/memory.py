"""The memory workload: the peak memory of a training step, and the memory and time of each way to lower it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

from benchmarks.cases import Case
from benchmarks.comparison import Setting, compare, enter
from benchmarks.program import Program, new_seed, prepare, random_tokens
from benchmarks.train_step import (
    STEPS_COMPARED,
    TOLERANCES,
    initial_state,
    shapes,
    step,
    step_call,
    work,
)
from jaxformer.config import Compute
from jaxformer.sites import available_sites
from train.step import StepOptions, TrainState

PLAIN = "jaxformer"
"""The name of the step that the others are compared with."""
SAVED: tuple[tuple[Any, ...], ...] = (
    ("resid_mid", "z"),
    ("resid_mid",),
    ("resid_mid", "z", "pre", "pre_linear"),
)
"""The sites to keep if --saved names none, limited to those of the model. The first is also run with vocab_chunk."""
CHUNK = 4096
"""The default of --vocab-chunk."""


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield one row per way; the losses of the first three steps must agree.

    The memory that a program needs beside the state is known before anything is allocated. All ways continue to train
    the same state alternately, so there is only one state in memory.
    """
    name, config, batch, seq = case
    arguments, seed = shapes(case), new_seed()
    known = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments))
    programs = {
        way: prepare(
            f"memory {name} {batch} x {seq}, {way}", partial(step, case, how), arguments,
            device=setting.device, options=setting.options, donate=(0,),
        )
        for way, how in ways(case, setting).items()
    }  # fmt: skip
    windows = random_tokens(config, batch, seq + 1, seed=seed)
    held: list[TrainState] = []

    def begin(program: Program) -> Callable[[], Any]:
        held.clear()  # frees the old state before the new one is allocated
        held.append(initial_state(config))
        return step_call(program, held, windows)

    entered = [
        enter(
            way, partial(begin, program), calls=STEPS_COMPARED,
            held_bytes=program.peak_bytes - known, seed=seed, kernel=setting.kernel, **program.notes(),
        )
        for way, program in programs.items()
    ]  # fmt: skip
    result_rows = compare(entered[0], entered[1:], work(case), TOLERANCES[setting.dtype], setting)
    for row in result_rows:
        way = row["implementation"]
        yield row | {
            "way": "plain" if way == PLAIN else way,
            "held_over_plain": row["held_bytes"] / result_rows[0]["held_bytes"],
        }


def ways(case: Case, setting: Setting) -> dict[str, StepOptions]:
    """Return how to run the step of each row; the first is the plain step."""
    options, config = setting.options, case.config
    narrow: Any = setting.dtype
    make_compute = partial(Compute, kernel=setting.kernel, dtype=narrow, unroll=options.unroll or 1)
    available = available_sites(config, make_compute())
    given: Any = (options.saved,) if options.saved else SAVED
    if not options.saved:
        given = dict.fromkeys(tuple(site for site in sites if site in available) for sites in given)
    kept = [make_compute(remat="sites", saved=sites) for sites in given if sites]
    found = {PLAIN: StepOptions(compute=make_compute())}
    most_memory_first = sorted(kept, key=lambda compute: -len(compute.saved))
    for compute in (make_compute(remat="dots"), *most_memory_first, make_compute(remat="block")):
        found[" ".join(("remat", compute.remat, *compute.saved))] = StepOptions(compute=compute)
    chunk = options.vocab_chunk or CHUNK
    if chunk < config.n_vocab:
        found[f"vocab_chunk {chunk}"] = StepOptions(compute=make_compute(), vocab_chunk=chunk)
        for compute in (*kept[:1], make_compute(remat="block")):
            way = " ".join((f"vocab_chunk {chunk}, remat", compute.remat, *compute.saved))
            found[way] = StepOptions(compute=compute, vocab_chunk=chunk)
    else:
        setting.say(
            f"vocab_chunk skipped at {case.name}: its vocabulary of {config.n_vocab} entries is not larger than {chunk}"
        )
    parts = options.accumulate if options.accumulate > 1 else min(4, case.batch)
    if case.batch % parts:
        setting.say(
            f"accumulate skipped at {case.name}: {case.batch} sequences are not a multiple of {parts} micro-batches"
        )
    elif parts > 1:
        found[f"accumulate {parts}"] = StepOptions(compute=make_compute(), accumulate=parts)
    return found
