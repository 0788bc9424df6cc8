"""Memory of a training step: what each way of needing less gives, and what it costs in time."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

from benchmarks.cases import Case
from benchmarks.contest import Setting, contest, enter
from benchmarks.program import Program, fresh_seed, prepare, random_tokens
from benchmarks.train_step import STEPS_COMPARED, TOLERANCES, fresh, shapes, step, stepping, work
from jaxformer.config import Compute
from jaxformer.model.sites import shown
from train.step import How, TrainState

PLAIN = "jaxformer"
"""The name of the step that the others are held against."""
SAVED: tuple[tuple[Any, ...], ...] = (
    ("resid_mid", "z"),
    ("resid_mid",),
    ("resid_mid", "z", "pre", "pre_linear"),
)
"""Sites to keep, where --saved names none; as far as a model has them. The first also with a vocab_chunk."""
CHUNK = 4096
"""Entries of the vocabulary, where --vocab-chunk gives no number."""


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """One row per way; the losses of the first three steps must agree.

    What a program will hold beside the state is known before anything is allocated. All ways train the same state
    on in turns: it is there once, whatever their number.
    """
    name, config, batch, seq = case
    arguments, seed = shapes(case), fresh_seed()
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
        held.clear()  # before there is another
        held.append(fresh(config))
        return stepping(program, held, windows)

    entered = [
        enter(
            way, partial(begin, program), calls=STEPS_COMPARED,
            held_bytes=program.peak_bytes - known, seed=seed, kernel=setting.kernel, **program.notes(),
        )
        for way, program in programs.items()
    ]  # fmt: skip
    found = contest(entered[0], entered[1:], work(case), TOLERANCES[setting.dtype], setting)
    for row in found:
        way = row["implementation"]
        yield row | {
            "way": "plain" if way == PLAIN else way,
            "held_over_plain": row["held_bytes"] / found[0]["held_bytes"],
        }


def ways(case: Case, setting: Setting) -> dict[str, How]:
    """How each row's step is run; the first is the plain one."""
    options, config = setting.options, case.config
    narrow: Any = setting.dtype
    how = partial(Compute, kernel=setting.kernel, dtype=narrow, unroll=options.unroll or 1)
    seen = shown(config, how())
    given: Any = (options.saved,) if options.saved else SAVED
    if not options.saved:
        given = dict.fromkeys(tuple(site for site in sites if site in seen) for sites in given)
    kept = [how(remat="sites", saved=sites) for sites in given if sites]
    found = {PLAIN: How(compute=how())}
    most_first = sorted(kept, key=lambda compute: -len(compute.saved))
    for compute in (how(remat="dots"), *most_first, how(remat="block")):
        found[" ".join(("remat", compute.remat, *compute.saved))] = How(compute=compute)
    chunk = options.vocab_chunk or CHUNK
    if chunk < config.n_vocab:
        found[f"vocab_chunk {chunk}"] = How(compute=how(), vocab_chunk=chunk)
        for compute in (*kept[:1], how(remat="block")):
            way = " ".join((f"vocab_chunk {chunk}, remat", compute.remat, *compute.saved))
            found[way] = How(compute=compute, vocab_chunk=chunk)
    else:
        setting.say(
            f"vocab_chunk skipped at {case.name}: it has {config.n_vocab} entries, not more than {chunk}"
        )
    parts = options.accumulate if options.accumulate > 1 else min(4, case.batch)
    if case.batch % parts:
        setting.say(
            f"accumulate skipped at {case.name}: {parts} does not divide {case.batch} sequences"
        )
    elif parts > 1:
        found[f"accumulate {parts}"] = How(compute=how(), accumulate=parts)
    return found
