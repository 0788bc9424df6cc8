"""Without the hardware at hand: the same functions lower for CPU, CUDA and TPU, and travel as bytes."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import Compute, Config, empty_cache, forward
from jaxformer.config import Kernel
from tests.helpers.models import CLASSIC, MODERN, random_params, random_tokens
from train.data.batches import Batch
from train.step import How, TrainState, train_step

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
        out: Any = forward(params, config, tokens, cache, compute=compute)
        return out.logits, tuple(out.cache)

    return run, (params, tokens[5:], cache)


def training(config: Config, compute: Compute):
    """A training step; a state travels as its leaves."""
    optimizer = optax.adamw(1e-3, eps=1.0)  # at 1e-8 a first step is the sign of rounding errors
    params: Any = random_params(config)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    leaves, tree = jax.tree.flatten(state)
    windows = jnp.stack([random_tokens(config, 6, seed) for seed in range(2)])

    how = How(compute=compute)

    def run(leaves, windows):
        batch = Batch(windows, jnp.ones_like(windows[:, 1:], dtype=bool))
        state, metrics = train_step(tree.unflatten(leaves), config, batch, optimizer, how)
        return jax.tree.leaves(state), metrics["loss"]

    return run, (leaves, windows)


@pytest.mark.slow(unless=("passing-einsum-classic",))
@pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
@pytest.mark.parametrize("kernel", ["einsum", "blocked", "fused"])
@pytest.mark.parametrize("work", [passing, decoding, training])
def test_lowers_for_every_platform_and_runs_after_a_round_trip(
    work, kernel: Kernel, config, standard_promotion
):
    run, arguments = work(config, Compute(kernel=kernel))
    arguments = tuple(jax.tree.leaves(a) if hasattr(a, "_fields") else a for a in arguments)
    trees = [jax.tree.structure(a) for a in work(config, Compute(kernel=kernel))[1]]

    def flat(*leaves):
        whole = [
            tree.unflatten(jax.tree.leaves(given))
            for tree, given in zip(trees, leaves, strict=True)
        ]
        return run(*whole)

    exported = jax.export.export(jax.jit(flat), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    again = jax.export.deserialize(exported.serialize())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        again.call(*arguments),
        jax.jit(flat)(*arguments),
    )
