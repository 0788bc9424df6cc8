"""The parity workload: errors of the logits, relative to float64, by dtype, attention kernel and matmul precision.

It also reports the errors that a narrow key/value cache adds to those of a float32 cache.
"""

from collections.abc import Callable, Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp

from benchmarks.cases import Case
from benchmarks.comparison import Setting, difference
from benchmarks.device import check_fits
from benchmarks.options import CacheName, DTypeName
from benchmarks.program import batched_logits, random_tokens
from jaxformer.config import Compute, Config, Kernel
from jaxformer.model.cache import empty_cache
from jaxformer.model.params import Params, init
from jaxformer.model.transformer import forward

PRECISIONS = ("default", "high", "highest")
POSITIONS = 128
"""The most positions that are read one at a time through a cache."""


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield a row per dtype, kernel and precision: the largest logit error, relative to the largest logit.

    The weights are float32 numbers in every row, and the exact logits are computed in float64 on the CPU. The
    precision is that of `jax.default_matmul_precision`.
    """
    _, config, batch, seq = case
    scores = config.n_heads * seq * seq
    needed = 8 * batch * (3 * seq * config.n_vocab + 2 * scores)  # float64 needs the most
    check_fits(f"parity {batch} x {seq}", needed, setting.device)
    params = init(config, jax.random.key(0))
    tokens = random_tokens(config, batch, seq, seed=1)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        run_exact = jax.jit(batched_logits(config, Compute(dtype="float64")))
        exact = jax.device_get(run_exact(*jax.device_get((params, tokens))))
    for dtype in get_args(DTypeName):
        for kernel in get_args(Kernel):
            for precision in PRECISIONS:
                compute = Compute(dtype=dtype, kernel=kernel)
                row = {"compute_dtype": dtype, "kernel": kernel, "precision": precision}
                yield {
                    "implementation": "jaxformer",
                    **row,
                    **errors(params, config, tokens, exact, compute, precision),
                }
    yield from cache_rows(params, config, tokens[:, :POSITIONS])


def cache_rows(params: Params, config: Config, tokens: Any) -> Iterator[dict[str, Any]]:
    """Yield a row per narrow cache, compared with a float32 cache. The given tokens are read one at a time."""
    exact = jax.device_get(jax.jit(one_by_one(config, "float32"))(params, tokens))
    for cache in get_args(CacheName):
        if cache != "float32":
            row = {"compute_dtype": "float32", "kernel": "einsum", "precision": "default"}
            logits = jax.jit(one_by_one(config, cache))(params, tokens)
            yield {"implementation": "jaxformer", **row, "cache": cache, **figures(logits, exact)}


def one_by_one(config: Config, cache: str) -> Callable[[Params, Any], Any]:
    """Return a function (params, tokens [b t]) -> logits [b t v] that reads one token at a time, as in decoding."""

    def logits(params: Params, tokens: Any) -> Any:
        def step(past: Any, token: Any) -> Any:
            out = forward(params, config, token[None], past)
            return out.cache, out.logits[0]

        def one(sequence: Any) -> Any:
            return jax.lax.scan(step, empty_cache(config, len(sequence), cache), sequence)[1]

        return jax.vmap(one)(tokens)

    return logits


def errors(
    params: Params, config: Config, tokens: Any, exact: Any, compute: Compute, precision: str
) -> dict[str, Any]:
    """Return the figures of one row, or the reason why this device cannot run it."""
    run = jax.jit(batched_logits(config, compute))
    try:
        with jax.default_matmul_precision(precision):
            logits = run(params, tokens)
    except (ValueError, NotImplementedError) as error:
        return {"unsupported": str(error).splitlines()[0]}
    return figures(logits, exact)


def figures(logits: Any, exact: Any) -> dict[str, Any]:
    """Return the largest error, relative to the largest logit, and how often the argmax agrees."""
    return {
        "error": difference(logits, exact),
        "largest_logit": float(abs(exact).max()),
        "argmax_agrees": float((jnp.argmax(logits, -1) == exact.argmax(-1)).mean()),
    }
