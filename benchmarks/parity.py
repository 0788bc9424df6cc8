"""How far the logits are from float64's: per dtype, attention kernel and precision of matrix products."""

from collections.abc import Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp

from benchmarks.cases import Case
from benchmarks.contest import Setting, difference
from benchmarks.device import check_fits
from benchmarks.options import DTypeName
from benchmarks.program import batched_logits, random_tokens
from jaxformer.config import Compute, Config, Kernel
from jaxformer.params import Params, init

PRECISIONS = ("default", "high", "highest")


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """A row per way of running: the largest logit error, relative to the largest logit.

    The weights are float32 numbers in every row; float64 on the CPU judges. A precision other than the
    default is the user's `jax.default_matmul_precision`.
    """
    _, config, batch, seq = case
    scores = config.n_heads * seq * seq
    needed = 8 * batch * (3 * seq * config.n_vocab + 2 * scores)  # float64's share is the largest
    check_fits(f"parity {batch} x {seq}", needed, setting.device)
    params = init(config, jax.random.key(0))
    tokens = random_tokens(config, batch, seq, seed=1)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = jax.jit(batched_logits(config, Compute(dtype="float64")))
        judge = jax.device_get(exact(*jax.device_get((params, tokens))))
    for dtype in get_args(DTypeName):
        for kernel in get_args(Kernel):
            for precision in PRECISIONS:
                compute = Compute(dtype=dtype, kernel=kernel)
                row = {"compute_dtype": dtype, "kernel": kernel, "precision": precision}
                yield {
                    "implementation": "jaxformer",
                    **row,
                    **errors(config, compute, precision, params, tokens, judge),
                }


def errors(
    config: Config, compute: Compute, precision: str, params: Params, tokens: Any, judge: Any
) -> dict[str, Any]:
    """The figures of one way of running; why there are none, where this device cannot run it."""
    run = jax.jit(batched_logits(config, compute))
    try:
        with jax.default_matmul_precision(precision):
            logits = run(params, tokens)
    except (ValueError, NotImplementedError) as error:
        return {"unsupported": str(error).splitlines()[0]}
    return {
        "error": difference(logits, judge),
        "largest_logit": float(abs(judge).max()),
        "argmax_agrees": float((jnp.argmax(logits, -1) == judge.argmax(-1)).mean()),
    }
