"""The PyTorch peers compute what we compute. They need the extra `peers`; .ci/run installs it."""

import dataclasses
import importlib.util
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.contest import as_array, difference
from benchmarks.decode import door
from benchmarks.peers import UnsupportedError, entrance
from benchmarks.program import batched_logits
from jaxformer import Compute, Config
from jaxformer.config import Bias
from jaxformer.model.params import init
from tests.helpers.errors import raises
from tests.helpers.models import CLASSIC, MODERN, NAMED, WINDOWED, random_params, random_tokens

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
        reason="the peers are not installed: pip install -e '.[peers]'",
    ),
]
EAGER = ["torch", "hf-eager", "hf-sdpa", "flax-nnx"]
GPT2 = dataclasses.replace(CLASSIC, d_head=2)  # its heads fill the stream
CPU = jax.devices("cpu")[0]


def batch(config, rows: int = 3):
    return jnp.stack([random_tokens(config, 7, seed) for seed in range(rows)])


STRANGE = ("gemma", "olmo")
FINER = {bias: dataclasses.replace(CLASSIC, bias=bias) for bias in get_args(Bias)}
PLAIN = {name: config for name, config in NAMED.items() if name not in STRANGE} | FINER


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_gpt_has_our_logits_for_every_choice(name: str, x64):
    config = PLAIN[name]
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


@pytest.mark.parametrize("name", ["torch", "hf-eager", "hf-sdpa"])
def test_peers_add_our_greedy_tokens(name: str):
    params, prompts = init(GPT2, jax.random.key(0)), batch(GPT2)[:, :5]
    call: Any = entrance(name, "decode")(GPT2, params, prompts, CPU)
    for new in (4, 1):
        ours = door(GPT2, Compute(), new, params, prompts)
        np.testing.assert_array_equal(as_array(call(new)), ours)


def test_the_plain_gpt_reads_no_more_than_its_position_table_holds():
    prompts = batch(GPT2)
    call: Any = entrance("torch", "decode")(GPT2, init(GPT2, jax.random.key(0)), prompts, CPU)
    assert GPT2.n_context == 9
    assert as_array(call(5)).shape == (3, 5)  # 7 + 5 - 1 positions


def test_what_would_compile_at_every_length_takes_no_part():
    arguments = GPT2, init(GPT2, jax.random.key(0)), batch(GPT2), CPU
    decode = entrance("torch-compile", "decode")
    with raises(UnsupportedError):
        decode(*arguments)


def test_a_peer_refuses_what_it_does_not_have():
    arguments = MODERN, random_params(MODERN), batch(MODERN), CPU
    with raises(UnsupportedError, "gpt2", "n_positions=None"):
        entrance("hf-sdpa", "forward")(*arguments)
    windowed = dataclasses.replace(GPT2, window=3)
    with raises(UnsupportedError, "gpt2", "window=3", None):
        entrance("hf-sdpa", "forward")(windowed, random_params(GPT2), batch(GPT2), CPU)


LLAMA: dict[str, Any] = {"rotary_scaling": "llama3", "rotary_factor": 2.0, "rotary_context": 20}
ODD: dict[str, dict[str, Any]] = {
    "rotary_scaling": {"rotary_scaling": "linear"},
    "rotary_factor": {"rotary_scaling": "linear", "rotary_factor": 2.0},
    "rotary_context": LLAMA, "rotary_low": LLAMA | {"rotary_low": 2.0}, "rotary_high": LLAMA | {"rotary_high": 3.0},
    "local_rotary_base": {"local_rotary_base": 30.0}, "norm_place": {"norm_place": "both"},
    "norm_plus_one": {"norm_plus_one": True}, "qk_norm": {"qk_norm": "head"},
    "embedding_scale": {"embedding_scale": 2.0}, "window_pattern": {"window_pattern": "LG"},
    "scale_by_depth": {"scale_by_depth": True}, "attention_cap": {"attention_cap": 5.0},
    "logit_cap": {"logit_cap": 5.0},
}  # fmt: skip
"""Choices that no peer has."""


def test_every_choice_is_known_to_the_plain_gpts_or_refused_by_every_peer():
    """Of the fields of a later Config too: this fails until they are in one of the two."""
    defaults = {f.name: f.default for f in dataclasses.fields(Config)}
    choices = {name for name, default in defaults.items() if default is not dataclasses.MISSING}
    for peer in ("torch_gpt", "flax_nnx"):
        known = importlib.import_module(f"benchmarks.peers.{peer}").KNOWN
        assert known.isdisjoint(ODD)
        assert known | ODD.keys() == choices


@pytest.mark.parametrize("choice", ODD)
def test_what_no_peer_has_every_peer_refuses(choice: str):
    config = dataclasses.replace(WINDOWED, **ODD[choice])
    assert getattr(config, choice) != getattr(WINDOWED, choice)
    params, tokens = random_params(config), batch(config)
    first, *_ = ODD[choice]  # in the order of Config's fields
    for peer in ("torch", "flax-nnx"):
        with raises(UnsupportedError, f"{first}={ODD[choice][first]!r}"):
            entrance(peer, "forward")(config, params, tokens, CPU)
    if "rotary" in choice or "window" in choice or choice == "scale_by_depth":
        return  # GPT-2 has no use for these to begin with, or has it
    config = dataclasses.replace(GPT2, **ODD[choice])
    params, tokens = random_params(config), batch(config)
    with raises(UnsupportedError, "gpt2", f"{choice}={ODD[choice][choice]!r}"):
        entrance("hf-sdpa", "forward")(config, params, tokens, CPU)
