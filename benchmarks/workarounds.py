"""What the workarounds for XLA's CPU compiler gain: `python -m benchmarks.workarounds [SIZE ...]`.

Each is switched off in turn, and the same work is timed with it and without it, alternately in one process.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.cases import cases, extended
from benchmarks.program import random_tokens
from benchmarks.timing import interleave, paired
from jaxformer.config import Config
from jaxformer.decoding.generation import generate
from jaxformer.model.params import init
from jaxformer.model.stream import einsum_f32
from train.data.batches import Batch
from train.step import loss_and_gradient


def plain_einsum(formula: str, pair: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Compute the einsum with its axes as they are."""
    del pair
    return einsum_f32(formula, left, right)


PLAIN: dict[str, tuple[str, Callable[..., Any]]] = {
    "recomputed norms": ("norm.recomputed", lambda function: function),
    "recomputed activations": ("mlp.recomputed", lambda function: function),
    "recomputed grouping": ("attention.recomputed", lambda function: function),
    "merged axes": ("attention.einsum_merged", plain_einsum),
    "added masks": ("attention.masked", lambda scores, mask: jnp.where(mask, scores, -jnp.inf)),
    "fence at the cache": ("cache.fence", lambda array: array),
    "fence at norms": ("norm.fence", lambda array: array),
}
"""Each workaround: where in `jaxformer.model` it is used, and the plain operation in its place."""


@contextmanager
def without(name: str) -> Iterator[None]:
    """Put the plain operation in the place of a workaround."""
    place, plain = PLAIN[name]
    with mock.patch(f"jaxformer.model.{place}", plain):
        yield


def training(config: Config, batch: int, seq: int) -> Callable[[], Any]:
    """Return a call that computes a loss and its gradient."""
    params, windows = init(config, jax.random.key(0)), random_tokens(config, batch, seq + 1, seed=1)
    arguments = params, Batch(windows, jnp.ones((batch, seq), bool))
    step = jax.jit(lambda params, batch: loss_and_gradient(params, config, batch))
    program = step.lower(*arguments).compile()
    return lambda: program(*arguments)


def decoding(config: Config, batch: int, seq: int) -> Callable[[], Any]:
    """Return a call that generates tokens for one prompt, eight times as long as the training sequences."""
    del batch
    config = extended(config, 16 * seq)
    params, prompt = init(config, jax.random.key(0)), jnp.ones(8 * seq, jnp.int32)

    def run(params: Any) -> jax.Array:
        return generate(params, config, prompt, 8 * seq, jax.random.key(1)).tokens

    jax.clear_caches()  # otherwise generate's own jit would reuse the first program
    program = jax.jit(run).lower(params).compile()
    return lambda: program(params)


WORK = {"training": training, "decoding": decoding}


def rows(size: str = "baby", repeats: int = 15) -> Iterator[dict[str, Any]]:
    """Yield, per kind of work and workaround, the median ratio of the time without it to the time with it."""
    [case] = cases((size,))
    for work, make in WORK.items():
        calls = {"": make(case.config, case.batch, case.seq)}
        for name in PLAIN:
            with without(name):
                calls[name] = make(case.config, case.batch, case.seq)
        times = interleave(calls, repeats=repeats)
        for name in PLAIN:
            ratio = paired(times[name], times[""])
            yield {
                "work": work,
                "without": name,
                "time": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
            }


def main() -> None:
    """Print a line per measurement."""
    print(f"jax {jax.__version__} on {jax.default_backend()}")
    for size in sys.argv[1:] or ["baby"]:
        for row in rows(size):
            print(
                f"{size} {row['work']:9} without {row['without']:23} takes "
                f"{row['time']:.2f} times as long ({row['low']:.2f} to {row['high']:.2f})"
            )


if __name__ == "__main__":
    main()
