"""The PyTorch peers compute the same as jaxformer. They need the extra `peers`; .ci/run installs it."""

import dataclasses
import importlib.util
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.comparison import as_array, difference
from benchmarks.decode import greedy_tokens
from benchmarks.peers import UnsupportedError, peer_function
from benchmarks.program import batched_logits
from jaxformer import Compute, Config
from jaxformer.config import Bias
from jaxformer.config_checks import flat_fields
from jaxformer.model.params import init
from tests.helpers.errors import raises
from tests.helpers.models import (
    CLASSIC,
    MODERN,
    NAMED,
    WINDOWED,
    changed,
    random_params,
    random_tokens,
)

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
        reason="the peers are not installed: pip install -e '.[peers]'",
    ),
]
EAGER = ["torch", "hf-eager", "hf-sdpa", "flax-nnx"]
GPT2 = dataclasses.replace(CLASSIC, d_head=2)  # n_heads · d_head = d_model
CPU = jax.devices("cpu")[0]


def batch(config, rows: int = 3):
    return jnp.stack([random_tokens(config, 7, seed) for seed in range(rows)])


UNSUPPORTED = ("gemma", "olmo")
BIASES = {bias: dataclasses.replace(CLASSIC, bias=bias) for bias in get_args(Bias)}
PLAIN = {name: config for name, config in NAMED.items() if name not in UNSUPPORTED} | BIASES


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_gpt_has_our_logits_for_every_choice(name: str, x64):
    config = PLAIN[name]
    params, tokens = random_params(config, dtype=jnp.float64), batch(config)
    call = peer_function("torch", "forward")(params, config, tokens, CPU)
    ours = batched_logits(config, Compute())(params, tokens)
    np.testing.assert_allclose(as_array(call()), ours, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["hf-eager", "hf-sdpa"])
def test_gpt2_has_our_logits(name: str, x64):
    params, tokens = random_params(GPT2, dtype=jnp.float64), batch(GPT2)
    call = peer_function(name, "forward")(params, GPT2, tokens, CPU)
    ours = batched_logits(GPT2, Compute())(params, tokens)
    np.testing.assert_allclose(as_array(call()), ours, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EAGER)
def test_narrow_weights_stay_narrow(name: str, standard_promotion):
    params, tokens = init(GPT2, jax.random.key(0), jnp.bfloat16), batch(GPT2)
    call = peer_function(name, "forward")(params, GPT2, tokens, CPU)
    ours = batched_logits(GPT2, Compute())(params, tokens)
    assert difference(call(), ours) < 0.05


@pytest.mark.parametrize("name", ["torch", "hf-eager", "hf-sdpa"])
def test_peers_add_our_greedy_tokens(name: str):
    params, prompts = init(GPT2, jax.random.key(0)), batch(GPT2)[:, :5]
    call: Any = peer_function(name, "decode")(params, GPT2, prompts, CPU)
    for new in (4, 1):
        ours = greedy_tokens(params, GPT2, prompts, new, Compute())
        np.testing.assert_array_equal(as_array(call(new)), ours)


def test_the_plain_gpt_reads_at_most_the_positions_of_its_table():
    prompts = batch(GPT2)
    call: Any = peer_function("torch", "decode")(init(GPT2, jax.random.key(0)), GPT2, prompts, CPU)
    assert GPT2.n_context == 9
    assert as_array(call(5)).shape == (3, 5)  # 7 + 5 - 1 positions


def test_torch_compile_refuses_decode():
    arguments = init(GPT2, jax.random.key(0)), GPT2, batch(GPT2), CPU
    decode = peer_function("torch-compile", "decode")
    with raises(UnsupportedError):
        decode(*arguments)


def test_a_peer_refuses_choices_that_it_does_not_have():
    arguments = random_params(MODERN), MODERN, batch(MODERN), CPU
    with raises(UnsupportedError, "gpt2", "n_positions=None"):
        peer_function("hf-sdpa", "forward")(*arguments)
    windowed = dataclasses.replace(GPT2, window=3)
    with raises(UnsupportedError, "gpt2", "window=3", None):
        peer_function("hf-sdpa", "forward")(random_params(GPT2), windowed, batch(GPT2), CPU)


LLAMA: dict[str, Any] = {
    "rotary.scaling": "llama3",
    "rotary.factor": 2.0,
    "rotary.original_context": 20,
}
ODD: dict[str, dict[str, Any]] = {
    "rotary.scaling": {"rotary.scaling": "linear"},
    "rotary.factor": {"rotary.scaling": "linear", "rotary.factor": 2.0},
    "rotary.original_context": LLAMA, "rotary.low_turns": LLAMA | {"rotary.low_turns": 2.0},
    "rotary.high_turns": LLAMA | {"rotary.high_turns": 3.0},
    "rotary.local_base": {"rotary.local_base": 30.0}, "norm_place": {"norm_place": "both"},
    "norm_plus_one": {"norm_plus_one": True}, "qk_norm": {"qk_norm": "head"},
    "embedding_scale": {"embedding_scale": 2.0}, "window_pattern": {"window_pattern": "LG"},
    "scale_scores_by_layer": {"scale_scores_by_layer": True}, "attention_soft_cap": {"attention_soft_cap": 5.0},
    "logit_soft_cap": {"logit_soft_cap": 5.0},
}  # fmt: skip
"""Choices that no peer supports."""


def test_every_choice_is_known_to_the_plain_gpts_or_refused_by_every_peer():
    """A field that Config gets later fails this test until it is in KNOWN or in ODD."""
    sizes = {f.name for f in dataclasses.fields(Config) if f.default is dataclasses.MISSING}
    choices = flat_fields(WINDOWED).keys() - sizes
    for peer in ("torch_gpt", "flax_nnx"):
        known = importlib.import_module(f"benchmarks.peers.{peer}").KNOWN
        assert known.isdisjoint(ODD)
        assert known | ODD.keys() == choices


@pytest.mark.parametrize("choice", ODD)
def test_every_peer_refuses_choices_that_no_peer_supports(choice: str):
    config = changed(WINDOWED, ODD[choice])
    assert flat_fields(config)[choice] != flat_fields(WINDOWED)[choice]
    params, tokens = random_params(config), batch(config)
    first, *_ = ODD[choice]  # in the order of Config's fields
    for peer in ("torch", "flax-nnx"):
        with raises(UnsupportedError, f"{first}={ODD[choice][first]!r}"):
            peer_function(peer, "forward")(params, config, tokens, CPU)
    if "rotary" in choice or "window" in choice or choice == "scale_scores_by_layer":
        return  # GPT-2 does not read these fields, or supports them
    config = changed(GPT2, ODD[choice])
    params, tokens = random_params(config), batch(config)
    with raises(UnsupportedError, "gpt2", f"{choice}={ODD[choice][choice]!r}"):
        peer_function("hf-sdpa", "forward")(params, config, tokens, CPU)
