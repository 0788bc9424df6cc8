"""One training step: gradient of the mean loss, AdamW, new parameters; the step that `train` runs."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.cases import Case
from benchmarks.contest import Setting, Work, contest, enter_ours, gather, in_float32_only
from benchmarks.peers import ADAMW
from benchmarks.program import Program, fresh_seed, prepare, random_tokens
from benchmarks.roofline import forward_bytes, train_flops
from jaxformer.config import Compute
from jaxformer.transformer import count, init
from train.batches import Batch
from train.step import TrainState, train_step

STEPS_COMPARED = 3
TOLERANCE = 1e-4


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """One row per implementation; the losses of the first three steps must agree.

    Parameters and optimizer are float32; a narrower dtype is that of our products alone, and peers,
    which would train something else, are left out.
    """
    name, config, batch_size, seq = case
    optimizer = optax.adamw(**ADAMW)
    narrow: Any = setting.dtype
    compute = Compute(kernel=setting.kernel, dtype=narrow)

    def fresh() -> TrainState:
        params: Any = init(config, jax.random.key(0))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def step(state: TrainState, windows: Any) -> Any:
        batch = Batch(windows, jnp.ones((batch_size, seq), bool))
        return train_step(state, config, batch, optimizer, compute)

    program = prepare(
        f"train-step {name} {batch_size} x {seq}",
        step,
        (jax.eval_shape(fresh), jax.ShapeDtypeStruct((batch_size, seq + 1), jnp.int32)),
        device=setting.device,
        options=setting.options,
        donate=(0,),
    )
    seed = fresh_seed()
    windows = random_tokens(config, batch_size, seq + 1, seed=seed)
    ours = enter_ours(
        program,
        lambda: stepping(program, fresh(), windows),
        calls=STEPS_COMPARED,
        kernel=compute.kernel,
        seed=seed,
    )
    setting = in_float32_only(setting, "they train in float32 only")
    arguments = config, init(config, jax.random.key(0)), windows, setting.device
    others = gather(setting, "train_step", arguments, calls=STEPS_COMPARED)
    states = 3 * 2 * 4 * count(config)  # parameters and both moments, read and written
    work = Work(
        tokens=batch_size * seq,
        flops=batch_size * train_flops(config, seq),
        traffic=forward_bytes(config, batch_size, seq, 4) + states,
    )
    yield from contest(ours, others, work, TOLERANCE, setting)


def stepping(program: Program, state: TrainState, windows: Any) -> Callable[[], Any]:
    """A call that trains one step further each time and returns the loss."""
    held = [state]

    def call() -> Any:
        held[0], metrics = program.run(held[0], windows)
        return metrics["loss"]

    return call
