"""Weak and strong scaling of the training step, and what its devices hold and send, beside theory.

Weak: each device has as many sequences as one has alone. Strong: all of them together have. Bytes are those of
any devices. The devices of a CPU are virtual and share its cores, so that there a time says what running in parts
costs, and nothing of how much faster more devices are.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case
from benchmarks.contest import Setting
from benchmarks.options import Options
from benchmarks.program import ahead, fresh_seed, random_tokens
from benchmarks.theory import Split, Step, predicted
from benchmarks.timing import interleave, paired, summarize
from benchmarks.train_step import stepping
from jaxformer.config import Compute
from train.data.batches import Batch
from train.devices.layout import Layout, lay_out, pretend
from train.optimizer import make_optimizer
from train.plan.collectives import Collective, collectives, totals, with_reduce_scatter
from train.plan.memory import own_bytes
from train.recipe import Architecture, Recipe
from train.run import batch_shapes, fresh_state, how_of, state_shapes
from train.step import TrainState, many_steps, validation_sums

DEVICES = (1, 2, 4, 8)
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}
"""Of the first step's loss, relative to one device's."""
BY_BATCH: tuple[Split, ...] = ("data", "fsdp")
"""What can scale weakly: of the others, each device has all sequences."""


class Point(NamedTuple):
    """What is in parts, on how many devices, and how many sequences a step has."""

    split: Split
    devices: int
    batch: int
    scaling: str  # one, weak or strong

    @property
    def mesh(self) -> str:
        """As --mesh of `python -m train` names it."""
        return f"{self.split}={self.devices}"

    @property
    def name(self) -> str:
        """No other point of its split has it."""
        return f"{self.mesh} {self.scaling}"


class Entrant(NamedTuple):
    """A step compiled for some devices, ready to be timed."""

    point: Point
    call: Callable[[], Any]
    loss: float  # of the first step
    notes: dict[str, Any]


def have_devices(options: Options) -> None:
    """Have as many devices of a CPU as the options name, if it is a CPU that is asked for."""
    if options.device in (None, "cpu"):
        pretend(max(options.devices or DEVICES))


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """For each split, a row per number of devices, weak and strong; all of one split are timed in turns.

    First steps of one batch must have the loss of one device before they are timed.

    Raises:
        ValueError: too few devices; a sequence that does not divide among them; too little memory.
    """
    numbers = device_numbers(setting)
    if len(numbers) == 1:
        raise ValueError("scaling needs more than one device; give --devices 1 2")
    case = dividing(case, math.lcm(*numbers), setting.say)
    if setting.device.platform == "cpu":
        setting.say(
            f"the {max(numbers)} devices of this CPU are virtual and share its cores: "
            "times show the overhead of running in parts, not a speed-up"
        )
    every = {split: points(split, numbers, case.batch) for split in setting.options.split}
    for point in itertools.chain.from_iterable(every.values()):
        laid_out(point, setting).check(recipe_for(case, setting, point.batch), case.config)
    seed, first = fresh_seed(), fresh_state(recipe_for(case, setting, case.batch), case.config)
    windows = np.asarray(random_tokens(case.config, max(numbers) * case.batch, case.seq + 1, seed))
    expected = losses_alone(case, setting, first.params, windows)
    one = entered(Point("data", 1, case.batch, "one"), case, setting, first, windows)
    for split, more in every.items():
        alone = one._replace(point=one.point._replace(split=split))
        others = (entered(point, case, setting, first, windows) for point in more)
        yield from timed([alone, *others], case, setting, expected, seed)


def device_numbers(setting: Setting) -> list[int]:
    """How many devices to take: those that are asked for, or the usual numbers as far as there are so many.

    Raises:
        ValueError: more are asked for than there are.
    """
    asked, there = setting.options.devices, len(jax.devices(setting.device.platform))
    if asked and max(asked) > there:
        raise ValueError(
            f"--devices {max(asked)} are too many: JAX has {there} ({setting.device.platform}); give at most "
            f"{there}"
        )
    return sorted({1, *(n for n in asked or DEVICES if n <= there)})


def dividing(case: Case, number: int, say: Callable[[str], None]) -> Case:
    """The case with sizes, and a batch, that so many devices divide: the next larger ones.

    Heads are made narrower where the same width can be cut into more.

    >>> from benchmarks.cases import SIZES
    >>> case = dividing(Case("seed", *SIZES["seed"]), 8, print)
    seed has d_head=16, n_heads=8, n_vocab=72, batch=16 here, so that 8 devices divide them
    """

    def up(size: int) -> int:
        return -(-size // number) * number

    config = case.config
    keys = None if config.n_kv_heads is None else up(config.n_kv_heads)
    heads = up(config.n_heads) if keys is None else -(-config.n_heads // keys) * keys
    width = config.n_heads * config.d_head
    sizes: dict[str, Any] = {
        "d_model": up(config.d_model),
        "d_head": width // heads if width % heads == 0 else config.d_head,
        "d_mlp": up(config.d_mlp),
        "n_heads": heads,
        "n_kv_heads": keys,
        "n_vocab": up(config.n_vocab),
    }
    batch = up(case.batch)
    other = {k: v for k, v in sizes.items() if v != getattr(config, k)}
    other |= {} if batch == case.batch else {"batch": batch}
    if other:
        listed = ", ".join(f"{name}={size}" for name, size in other.items())
        say(f"{case.name} has {listed} here, so that {number} devices divide them")
    return case._replace(config=dataclasses.replace(config, **sizes), batch=batch)


def points(split: Split, numbers: list[int], batch: int) -> list[Point]:
    """Of more than one device: weak, where the batch is in parts, then strong.

    >>> [(p.mesh, p.scaling, p.batch) for p in points("fsdp", [1, 2, 4], 4)]
    [('fsdp=2', 'weak', 8), ('fsdp=4', 'weak', 16), ('fsdp=2', 'strong', 4), ('fsdp=4', 'strong', 4)]
    """
    more = [n for n in numbers if n > 1]
    weak = [Point(split, n, n * batch, "weak") for n in more if split in BY_BATCH]
    return weak + [Point(split, n, batch, "strong") for n in more]


def laid_out(point: Point, setting: Setting) -> Layout:
    """On the first so many devices, by the usual rules."""
    return lay_out(point.mesh, (), jax.devices(setting.device.platform)[: point.devices])


def recipe_for(case: Case, setting: Setting, batch: int) -> Recipe:
    """The step as `python -m train` runs it."""
    narrow: Any = setting.dtype
    compute = Compute(kernel=setting.kernel, dtype=narrow, unroll=setting.options.unroll or 1)
    return Recipe(
        config=Architecture(**dataclasses.asdict(case.config)), context=case.seq, batch=batch,
        compute=compute, steps=1, chunk=1, validate_every=1,
    )  # fmt: skip


def losses_alone(case: Case, setting: Setting, params: Any, windows: Any) -> dict[int, float]:
    """The first loss on one device of the first so many windows, in parts of the case's batch."""
    recipe = recipe_for(case, setting, case.batch)
    parts = windows.reshape(-1, case.batch, case.seq + 1)
    every = Batch(parts, np.ones((*parts.shape[:2], case.seq), bool))
    sums: Any = validation_sums(case.config, how_of(recipe, Layout()))(params, every)
    whole = np.cumsum(np.asarray(sums, np.float64))
    sizes = case.batch * np.arange(1, len(parts) + 1)
    return dict(zip(sizes.tolist(), (whole / sizes / case.seq).tolist(), strict=True))


def entered(point: Point, case: Case, setting: Setting, first: TrainState, windows: Any) -> Entrant:
    """The step of a point, compiled, and its first loss.

    Raises:
        ValueError: sizes that do not divide, too little memory.
    """
    config, recipe = case.config, recipe_for(case, setting, point.batch)
    layout = laid_out(point, setting)
    state, batches = state_shapes(recipe, config, layout), batch_shapes(recipe, layout)
    optimizer = make_optimizer(config, recipe.optimizer, recipe.steps)
    steps: Any = many_steps(config, optimizer, how_of(recipe, layout))
    copies = point.devices if setting.device.platform == "cpu" else 1  # in one memory
    program = ahead(
        f"scaling {point.mesh} {point.batch} x {case.seq}",
        lambda: steps.lower(state, batches),
        copies * own_bytes((state, batches)),
        device=setting.device,
        options=setting.options,
        copies=copies,
    )
    some = windows[None, : point.batch]
    batch = layout.put(Batch(some, np.ones((*some.shape[:2], case.seq), bool)), None, layout.batch)
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    # A copy, for the step takes its state's buffers for its own; jax.device_put may return what it was given.
    own = jax.jit(partial(jax.tree.map, jnp.copy), out_shardings=where)(first)
    call = stepping(program, [own], batch)
    done: Any = program.run
    found = collectives(done.as_text())
    notes = {
        **program.notes(),
        "parameter_bytes": own_bytes(state.params),
        "optimizer_bytes": own_bytes(state.optimizer),
        "temporary_bytes": done.memory_analysis().temp_size_in_bytes,
        **traffic(point, found, Step(config, point.batch, case.seq)),
    }
    return Entrant(point, call, float(np.asarray(call())[0]), notes)


def traffic(point: Point, found: list[Collective], step: Step) -> dict[str, Any]:
    """What one device sends in a step: as compiled, with reduce-scatters, and by theory."""
    ways = {
        "compiled": found,
        "compiled_scattered": with_reduce_scatter(found),
        "theory": predicted(point.split, point.devices, step),
        "theory_joined": predicted(point.split, point.devices, step._replace(joined=True)),
    }
    by_kind = {name: totals(each) for name, each in ways.items()}
    return {name: {k: t._asdict() for k, t in each.items()} for name, each in by_kind.items()} | {
        f"{name}_payload_bytes": sum(t.payload_bytes for t in each.values())
        for name, each in by_kind.items()
    }


def timed(
    entrants: list[Entrant],
    case: Case,
    setting: Setting,
    expected: dict[int, float],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Time in turns what agrees, and say of each how it compares with one device."""
    off = [abs(one.loss / expected[one.point.batch] - 1) for one in entrants]
    agrees = [difference <= TOLERANCES[setting.dtype] for difference in off]
    options, first = setting.options, entrants[0].point.name
    calls = {one.point.name: one.call for one, agree in zip(entrants, agrees, strict=True) if agree}
    times = interleave(calls, repeats=options.repeats, seconds=options.seconds) if calls else {}
    for one, difference, agree in zip(entrants, off, agrees, strict=True):
        row = {
            "implementation": "jaxformer",
            **one.point._asdict(),
            "mesh": one.point.mesh,
            "config": dataclasses.asdict(case.config),
            "virtual": setting.device.platform == "cpu",
            "kernel": setting.kernel,
            "seed": seed,
            "loss": one.loss,
            "difference": difference,
            "agrees": agree,
            **one.notes,
        }
        if {one.point.name, first} <= times.keys():
            row |= summarize(times[one.point.name])._asdict()
            ratio = paired(times[one.point.name], times[first])
            work = one.point.batch / case.batch
            row |= {f"over_one_{key}": getattr(ratio, key) for key in ("median", "low", "high")}
            row |= {"work": work, "over_work": ratio.median / work}
            row["tokens_per_second"] = one.point.batch * case.seq / row["median"]
        yield row
