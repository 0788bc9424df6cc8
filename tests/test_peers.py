"""The PyTorch peers compute what we compute. They need the extra `peers`; .ci/run installs it."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.contest import as_array, difference
from benchmarks.decode import greedy
from benchmarks.peers import PEERS, UnsupportedError, entrance
from benchmarks.program import batched_logits
from jaxformer import Compute
from jaxformer.params import init
from tests.models import CLASSIC, MODERN, NAMED, random_params, random_tokens

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for peer in PEERS.values() for name in peer.needs),
    reason="the peers are not installed: pip install -e '.[peers]'",
)
EAGER = ["torch", "hf-eager", "hf-sdpa", "flax-nnx"]
GPT2 = dataclasses.replace(CLASSIC, d_head=2)  # its heads fill the stream
CPU = jax.devices("cpu")[0]


def batch(config, rows: int = 3):
    return jnp.stack([random_tokens(config, 7, seed) for seed in range(rows)])


@pytest.mark.parametrize("name", NAMED)
def test_the_plain_gpt_has_our_logits_for_every_choice(name: str, x64):
    config = NAMED[name]
    params, tokens = random_params(config, dtype=jnp.float64), batch(config)
    call = entrance("torch", "forward")(config, params, tokens, CPU)
    ours = batched_logits(config, Compute())(params, tokens)
    np.testing.assert_allclose(as_array(call()), ours, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["hf-eager", "hf-sdpa"])
def test_gpt2_has_our_logits(name: str, x64):
    params, tokens = random_params(GPT2, dtype=jnp.float64), batch(GPT2)
    call = entrance(name, "forward")(GPT2, params, tokens, CPU)
    ours = batched_logits(GPT2, Compute())(params, tokens)
    np.testing.assert_allclose(as_array(call()), ours, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EAGER)
def test_narrow_weights_stay_narrow(name: str, standard_promotion):
    params, tokens = init(GPT2, jax.random.key(0), jnp.bfloat16), batch(GPT2)
    call = entrance(name, "forward")(GPT2, params, tokens, CPU)
    ours = batched_logits(GPT2, Compute())(params, tokens)
    assert difference(call(), ours) < 0.05


def test_generate_adds_our_greedy_tokens():
    params, prompts = init(GPT2, jax.random.key(0)), batch(GPT2)[:, :5]
    call = entrance("hf-sdpa", "decode")(GPT2, params, prompts, CPU, new=4)
    ours = greedy(GPT2, Compute(), 4, jnp.float32)(params, prompts)
    np.testing.assert_array_equal(as_array(call()), ours)


def test_a_peer_refuses_what_it_does_not_have():
    arguments = MODERN, random_params(MODERN), batch(MODERN), CPU
    with pytest.raises(UnsupportedError, match='GPT-2 needs position="learned"'):
        entrance("hf-sdpa", "forward")(*arguments)
