"""Without the hardware at hand: the same functions lower for CPU, CUDA and TPU, and travel as bytes."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.workarounds import PLAIN
from jaxformer import Compute, Config, empty_cache, forward
from jaxformer.config import Kernel
from tests.helpers.models import CLASSIC, MODERN, random_params, random_tokens
from train.data.batches import Batch
from train.step import StepOptions, TrainState, train_step

PLATFORMS = ("cpu", "cuda", "tpu")


def passing(config: Config, compute: Compute):
    """forward on a batch."""
    params = random_params(config)
    tokens = jnp.stack([random_tokens(config, 6, seed) for seed in range(2)])

    def run(params, tokens):
        one = lambda t: forward(params, config, t, compute=compute).logits  # noqa: E731
        return jax.vmap(one)(tokens)

    return run, (params, tokens)


def decoding(config: Config, compute: Compute):
    """One token more, from a cache."""
    params, tokens = random_params(config), random_tokens(config, 6)
    cache: Any = forward(params, config, tokens[:5], empty_cache(config, 6)).cache

    def run(params, tokens, cache):
        out = forward(params, config, tokens, cache, compute=compute)
        return out.logits, out.cache

    return run, (params, tokens[5:], cache)


def training(config: Config, compute: Compute):
    """A training step."""
    optimizer = optax.adamw(1e-3, eps=1.0)  # at 1e-8 a first step is the sign of rounding errors
    params: Any = random_params(config)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    windows = jnp.stack([random_tokens(config, 6, seed) for seed in range(2)])

    def run(state, windows):
        batch = Batch(windows, jnp.ones_like(windows[:, 1:], dtype=bool))
        state, metrics = train_step(state, config, batch, optimizer, StepOptions(compute=compute))
        return state, metrics["loss"]

    return run, (state, windows)


@pytest.mark.slow(unless=("passing-einsum-classic",))
@pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
@pytest.mark.parametrize("kernel", ["einsum", "blocked", "fused"])
@pytest.mark.parametrize("work", [passing, decoding, training])
def test_lowers_for_every_platform_and_runs_after_a_round_trip(
    work, kernel: Kernel, config, standard_promotion
):
    """A NamedTuple has no serial form: what goes in and comes out travels as leaves."""
    run, arguments = work(config, Compute(kernel=kernel))
    leaves, tree = jax.tree.flatten(arguments)
    flat = jax.jit(lambda leaves: jax.tree.leaves(run(*tree.unflatten(leaves))))
    exported = jax.export.export(flat, platforms=PLATFORMS)(leaves)
    assert exported.platforms == PLATFORMS
    again = jax.export.deserialize(exported.serialize())
    for found, expected in zip(again.call(leaves), flat(leaves), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_backends_get_the_plain_program(platform: str, monkeypatch, standard_promotion):
    """The workarounds for XLA on CPU are not in it: it is the program in which each of them is the identity."""

    def lowered(work) -> str:
        jax.clear_caches()  # forward keeps what it traced
        run, arguments = work(CLASSIC, Compute())
        return jax.jit(run).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()

    def primitives(work) -> str:
        jax.clear_caches()
        run, arguments = work(CLASSIC, Compute())
        return str(jax.make_jaxpr(run)(*arguments))

    assert "prevent_cse" in primitives(training)
    assert "optimization_barrier" in lowered(decoding)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert "prevent_cse" not in primitives(training)
    found = [lowered(work) for work in (passing, decoding, training)]
    assert not any("optimization_barrier" in text for text in found)
    for place, plain in PLAIN.values():
        monkeypatch.setattr(f"jaxformer.model.{place}", plain)
    assert found == [lowered(work) for work in (passing, decoding, training)]
