"""Small models for the tests: a seed, a modern one, and hypothesis strategies over all Configs."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, get_args

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Config, Params, abstract
from jaxformer.config import ActivationKind, Bias, NormKind, NormPlace, Position, QKNorm, Rotary
from jaxformer.config_checks import flat_fields

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
    SEED, position="rotary", rotary=Rotary(fraction=0.5), norm="layer", bias="all", parallel=True
)
WINDOWED = dataclasses.replace(MODERN, window=3)
GEMMA = dataclasses.replace(
    MODERN, bias="none", tied=True, embedding_scale=2.5, activation="gelu_tanh",
    norm_place="both", norm_plus_one=True, qk_norm="head", attention_soft_cap=2.0, logit_soft_cap=3.0,
    window=3, window_pattern="LG", rotary=Rotary(local_base=50.0, scaling="linear", factor=2.0),
)  # fmt: skip
OLMO = dataclasses.replace(
    MODERN, bias="attention", norm_place="after", qk_norm="all", scale_scores_by_layer=True,
    rotary=Rotary(scaling="llama3", factor=4.0, original_context=20, low_turns=0.5, high_turns=2.0),
)  # fmt: skip
ATTENTION_ONLY = dataclasses.replace(SEED, d_mlp=0, position="sinusoidal", attention_scale=1.0)

NAMED = {
    "seed": SEED,
    "modern": MODERN,
    "classic": CLASSIC,
    "parallel": PARALLEL,
    "windowed": WINDOWED,
    "attention_only": ATTENTION_ONLY,
    "gemma": GEMMA,
    "olmo": OLMO,
}
THREE = ("seed", "classic", "gemma")
"""The seed; learned positions, layer norms, biases, tied; rotary, grouped queries, windows, caps, gates, all norms."""

every_model = pytest.mark.parametrize(
    "name",
    [name if name in THREE else pytest.param(name, marks=pytest.mark.slow) for name in NAMED],
)
"""Three models in the fast tier, all of them with `-m ""`."""
three_models = pytest.mark.parametrize("name", THREE)
"""Three models in both tiers, where a law hardly depends on the architecture."""


LATE = (
    "rotary.scaling", "rotary.factor", "rotary.original_context", "rotary.low_turns", "rotary.high_turns",
    "rotary.local_base",
    "norm_place", "norm_plus_one", "qk_norm", "embedding_scale", "window_pattern", "scale_scores_by_layer",
    "attention_soft_cap", "logit_soft_cap",
)  # fmt: skip
"""Fields of Config that the folders of older models and runs lack."""


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
        "qk_norm": draw(st.sampled_from(get_args(QKNorm))),
        "embedding_scale": draw(st.sampled_from([1.0, 2.5])),
        "scale_scores_by_layer": draw(st.booleans()),
        "attention_soft_cap": draw(st.sampled_from([None, 2.0])),
        "logit_soft_cap": draw(st.sampled_from([None, 3.0])),
        "tied": draw(st.booleans()),
        "unembed_bias": draw(st.booleans()),
        "window": draw(st.sampled_from([None, 1, 3])),
        "attention_scale": draw(st.sampled_from([None, 1.0, 0.3])),
    }
    if position == "learned":
        choices["n_context"] = draw(st.integers(6, 9))
    if position == "rotary":
        choices["rotary.fraction"] = draw(st.sampled_from([0.5, 1.0]))
        choices["rotary.base"] = draw(st.sampled_from([100.0, 10_000.0]))
        choices |= draw(st.sampled_from(ROTARY_SCALINGS))
    if choices["window"] is not None:
        choices["window_pattern"] = draw(st.sampled_from(["L", "LG", "GLL"]))
        if position == "rotary":
            choices["rotary.local_base"] = draw(st.sampled_from([None, 30.0]))
    if choices["norm"] != "none":
        choices["norm_place"] = draw(st.sampled_from(get_args(NormPlace)))
    if choices["norm"] != "none" or choices["qk_norm"] != "none":
        choices["norm_epsilon"] = draw(st.sampled_from([1e-5, 1e-2]))
        choices["norm_plus_one"] = draw(st.booleans())
    if d_mlp:
        choices["gated"], choices["parallel"] = draw(st.booleans()), draw(st.booleans())
    return Config.from_dict(choices)


def within(config: Config, known: Collection[str]) -> Config:
    """The same model with all but these choices, and the sizes, as in the seed."""
    sizes = {f.name for f in dataclasses.fields(Config) if f.default is dataclasses.MISSING}
    fields = flat_fields(config)
    return Config.from_dict({name: fields[name] for name in sizes | set(known)})


def changed(config: Config, choices: Mapping[str, Any]) -> Config:
    """The Config with some fields replaced; those of rotary as "rotary.base" and so on."""
    return Config.from_dict(flat_fields(config) | dict(choices))


ROTARY_SCALINGS = [
    {"rotary.scaling": "none"},
    {"rotary.scaling": "linear", "rotary.factor": 4.0},
    {"rotary.scaling": "llama3", "rotary.factor": 4.0, "rotary.original_context": 20,
     "rotary.low_turns": 0.5, "rotary.high_turns": 2.0},
]  # fmt: skip


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


def same(a: Any, b: Any) -> None:
    """Trees of one structure, equal bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
