"""The train-step workload: the step that `train` runs, with the gradient of the mean loss and AdamW."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.cases import Case
from benchmarks.comparison import Setting, Work, compare, enter_jaxformer, enter_peers
from benchmarks.peers import ADAMW
from benchmarks.program import Program, new_seed, prepare, random_tokens
from benchmarks.roofline import forward_bytes
from jaxformer.config import Compute, Config
from jaxformer.model.params import count, init
from train.data.batches import Batch
from train.plan.flops import train_flops
from train.step import StepOptions, TrainState, train_step

OPTIMIZER = optax.adamw(**ADAMW)
STEPS_COMPARED = 3
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
"""The largest allowed relative difference of the losses: autocast rounds other products than jaxformer does."""


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield one row per implementation; the losses of the first three steps must agree.

    Parameters and optimizer are float32; a narrower dtype applies only to matrix products. Jaxformer unrolls the loop
    over layers, as `train` does, unless --unroll is given.
    """
    name, config, batch_size, seq = case
    options = setting.options
    compute = step_compute(config, setting)
    how = StepOptions(compute=compute, accumulate=options.accumulate)
    if batch_size % options.accumulate:
        raise ValueError(
            f"the batch of {batch_size} sequences is not a multiple of --accumulate {options.accumulate}; "
            "choose a divisor"
        )
    program = prepare(
        f"train-step {name} {batch_size} x {seq}",
        partial(step, case, how),
        shapes(case),
        device=setting.device,
        options=options,
        donate=(0,),
    )
    seed = new_seed()
    windows = random_tokens(config, batch_size, seq + 1, seed=seed)
    ours = enter_jaxformer(
        program,
        lambda: step_call(program, [initial_state(config)], windows),
        calls=STEPS_COMPARED,
        kernel=compute.kernel,
        unroll=compute.unroll,
        accumulate=options.accumulate,
        seed=seed,
    )
    arguments = init(config, jax.random.key(0)), config, windows, setting.device
    others = enter_peers(
        setting, "train_step", arguments, calls=STEPS_COMPARED, dtype=setting.dtype
    )
    yield from compare(ours, others, work(case), TOLERANCES[setting.dtype], setting)


def initial_state(config: Config) -> TrainState:
    """Return the initial state, the same at each call."""
    params: Any = init(config, jax.random.key(0))
    return TrainState(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params))


def step(case: Case, how: StepOptions, state: TrainState, windows: Any) -> Any:
    """Make one step in which all targets count."""
    batch = Batch(windows, jnp.ones((case.batch, case.seq), bool))
    return train_step(state, case.config, batch, OPTIMIZER, how)


def shapes(case: Case) -> tuple[Any, Any]:
    """Return the shapes of a state and of the windows of a step."""
    windows = jax.ShapeDtypeStruct((case.batch, case.seq + 1), jnp.int32)
    return jax.eval_shape(partial(initial_state, case.config)), windows


def work(case: Case) -> Work:
    """Return the least work of a step: parameters and both moments are read and written."""
    states = 3 * 2 * 4 * count(case.config)
    return Work(
        tokens=case.batch * case.seq,
        flops=case.batch * train_flops(case.config, case.seq),
        traffic=forward_bytes(case.config, case.batch, case.seq, 4) + states,
    )


def step_compute(config: Config, setting: Setting) -> Compute:
    """Return how jaxformer runs the step: the setting's dtype, and --unroll layers per iteration, or all."""
    narrow: Any = setting.dtype
    unroll = setting.options.unroll or max(config.n_layers, 1)
    return Compute(kernel=setting.kernel, dtype=narrow, unroll=unroll)


def step_call(program: Program, held: list[TrainState], windows: Any) -> Callable[[], Any]:
    """Return a call that makes one step, replaces the state in the list, and returns the loss."""

    def call() -> Any:
        held[0], metrics = program.run(held[0], windows)
        return metrics["loss"]

    return call
