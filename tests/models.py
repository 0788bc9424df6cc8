"""Small models for the tests: a seed, a modern one, and hypothesis strategies over all Configs."""

import dataclasses
from typing import Any, get_args

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import Config, Params, abstract
from jaxformer.config import ActivationKind, Bias, NormKind, Position

SEED = Config(n_layers=2, d_model=8, n_heads=4, d_head=4, d_mlp=12, n_vocab=11)
MODERN = dataclasses.replace(
    SEED, n_kv_heads=2, position="rotary", norm="rms", activation="silu", gated=True, bias="qkv"
)
CLASSIC = dataclasses.replace(
    SEED,
    position="learned",
    n_context=9,
    norm="layer",
    activation="gelu_tanh",
    bias="all",
    tied=True,
)
PARALLEL = dataclasses.replace(
    SEED, position="rotary", rotary_fraction=0.5, norm="layer", bias="all", parallel=True
)
WINDOWED = dataclasses.replace(MODERN, window=3)
ATTENTION_ONLY = dataclasses.replace(SEED, d_mlp=0, position="sinusoidal", attention_scale=1.0)

NAMED = {
    "seed": SEED,
    "modern": MODERN,
    "classic": CLASSIC,
    "parallel": PARALLEL,
    "windowed": WINDOWED,
    "attention_only": ATTENTION_ONLY,
}


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any valid small Config; every choice is drawn."""
    position = draw(st.sampled_from(get_args(Position)))
    n_kv_heads = draw(st.sampled_from([None, 1, 2]))
    d_mlp = draw(st.sampled_from([0, 5, 7]))
    choices: dict[str, Any] = {
        "n_layers": draw(st.integers(0, 3)),
        "d_model": draw(st.sampled_from([4, 6])),
        "n_heads": draw(st.sampled_from([2, 4])),
        "d_head": draw(st.sampled_from([4, 8])),
        "d_mlp": d_mlp,
        "n_vocab": 7,
        "n_kv_heads": n_kv_heads,
        "position": position,
        "norm": draw(st.sampled_from(get_args(NormKind))),
        "activation": draw(st.sampled_from(get_args(ActivationKind))),
        "bias": draw(st.sampled_from(get_args(Bias))),
        "tied": draw(st.booleans()),
        "unembed_bias": draw(st.booleans()),
        "window": draw(st.sampled_from([None, 1, 3])),
        "attention_scale": draw(st.sampled_from([None, 1.0, 0.3])),
    }
    if position == "learned":
        choices["n_context"] = draw(st.integers(6, 9))
    if position == "rotary":
        choices["rotary_fraction"] = draw(st.sampled_from([0.5, 1.0]))
        choices["rotary_base"] = draw(st.sampled_from([100.0, 10_000.0]))
    if choices["norm"] != "none":
        choices["norm_epsilon"] = draw(st.sampled_from([1e-5, 1e-2]))
    if d_mlp:
        choices["gated"], choices["parallel"] = draw(st.booleans()), draw(st.booleans())
    return Config(**choices)


def random_params(config: Config, seed: int = 0, dtype: Any = jnp.float32) -> Params:
    """Parameters with no zeros or ones left in them, so that no bias or norm weight goes untested."""
    rng = np.random.default_rng(seed)

    def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.5 * rng.standard_normal(shape.shape) + 0.1, dtype)

    return jax.tree.map(draw, abstract(config))


def random_tokens(config: Config, length: int, seed: int = 0) -> jax.Array:
    """One sequence of ids."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, config.n_vocab, length), jnp.int32)


def compiled_flops(function: Any, *args: Any) -> float:
    """XLA's own count for a compiled function; a loop's body counts once."""
    analysis: Any = jax.jit(function).lower(*args).compile().cost_analysis()
    return analysis["flops"]
