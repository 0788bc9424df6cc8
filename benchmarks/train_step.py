"""One training step: gradient of the mean loss, AdamW, new parameters; the step that `train` runs."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.cases import Case
from benchmarks.contest import Setting, Work, contest, enter_ours, gather
from benchmarks.peers import ADAMW
from benchmarks.program import Program, fresh_seed, prepare, random_tokens
from benchmarks.roofline import forward_bytes
from jaxformer.config import Compute, Config
from jaxformer.model.params import count, init
from train.data.batches import Batch
from train.plan.flops import train_flops
from train.step import How, TrainState, train_step

OPTIMIZER = optax.adamw(**ADAMW)
STEPS_COMPARED = 3
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
"""Of the losses: autocast and we do not round the same products."""


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """One row per implementation; the losses of the first three steps must agree.

    Parameters and optimizer are float32; a narrower dtype is that of the products alone. Ours runs all
    layers in a row, as one step of `train` does, unless --unroll says otherwise.
    """
    name, config, batch_size, seq = case
    options = setting.options
    compute = our_compute(config, setting)
    how = How(compute=compute, accumulate=options.accumulate)
    if batch_size % options.accumulate:
        raise ValueError(
            f"--accumulate {options.accumulate} does not divide the batch of {batch_size} sequences"
        )
    program = prepare(
        f"train-step {name} {batch_size} x {seq}",
        partial(step, case, how),
        shapes(case),
        device=setting.device,
        options=options,
        donate=(0,),
    )
    seed = fresh_seed()
    windows = random_tokens(config, batch_size, seq + 1, seed=seed)
    ours = enter_ours(
        program,
        lambda: stepping(program, [fresh(config)], windows),
        calls=STEPS_COMPARED,
        kernel=compute.kernel,
        unroll=compute.unroll,
        accumulate=options.accumulate,
        seed=seed,
    )
    arguments = config, init(config, jax.random.key(0)), windows, setting.device
    others = gather(setting, "train_step", arguments, calls=STEPS_COMPARED, dtype=setting.dtype)
    yield from contest(ours, others, work(case), TOLERANCES[setting.dtype], setting)


def fresh(config: Config) -> TrainState:
    """A state to begin with; the same each time."""
    params: Any = init(config, jax.random.key(0))
    return TrainState(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params))


def step(case: Case, how: How, state: TrainState, windows: Any) -> Any:
    """One step, in which all targets count."""
    batch = Batch(windows, jnp.ones((case.batch, case.seq), bool))
    return train_step(state, case.config, batch, OPTIMIZER, how)


def shapes(case: Case) -> tuple[Any, Any]:
    """Those of a state and of the windows of a step."""
    windows = jax.ShapeDtypeStruct((case.batch, case.seq + 1), jnp.int32)
    return jax.eval_shape(partial(fresh, case.config)), windows


def work(case: Case) -> Work:
    """What a step is, at the least: parameters and both moments are read and written."""
    states = 3 * 2 * 4 * count(case.config)
    return Work(
        tokens=case.batch * case.seq,
        flops=case.batch * train_flops(case.config, case.seq),
        traffic=forward_bytes(case.config, case.batch, case.seq, 4) + states,
    )


def our_compute(config: Config, setting: Setting) -> Compute:
    """Products in the setting's dtype; as many layers per turn of the loop as --unroll says, or all."""
    narrow: Any = setting.dtype
    unroll = setting.options.unroll or max(config.n_layers, 1)
    return Compute(kernel=setting.kernel, dtype=narrow, unroll=unroll)


def stepping(program: Program, held: list[TrainState], windows: Any) -> Callable[[], Any]:
    """A call that trains the one state in a list a step further and returns the loss."""

    def call() -> Any:
        held[0], metrics = program.run(held[0], windows)
        return metrics["loss"]

    return call
