"""Config and Compute: plain data, every invalid one refused by a sentence."""

import dataclasses
import json

import jax
import pytest
from hypothesis import given

from jaxformer import Compute, Config
from tests.models import CLASSIC, MODERN, SEED, configs

REFUSED = [
    ({"n_heads": 0}, "n_heads=0 must be at least 1"),
    ({"n_layers": -1}, "n_layers=-1 must be at least 0"),
    ({"d_model": 8.0}, "d_model=8.0 must be an integer"),
    ({"d_mlp": True}, "d_mlp=True must be an integer"),
    ({"n_kv_heads": 3}, r"n_heads=4 is not a multiple of n_kv_heads=3; choose n_kv_heads from \[1, 2, 4\]"),
    ({"n_kv_heads": 0}, "n_kv_heads=0 must be at least 1"),
    ({"position": "rotatory"}, "position='rotatory' must be one of 'none', 'sinusoidal'"),
    ({"norm": None}, "norm=None must be one of"),
    ({"activation": "swish"}, "activation='swish' must be one of"),
    ({"bias": "some"}, "bias='some' must be one of"),
    ({"gated": 1}, "gated=1 must be True or False"),
    ({"position": "learned"}, "needs n_context"),
    ({"position": "learned", "n_context": 0}, "n_context=0 must be at least 1"),
    ({"n_context": 8}, "n_context=8 is read only with position=\"learned\""),
    ({"position": "sinusoidal", "d_model": 7}, "choose an even d_model, not 7"),
    ({"position": "rotary", "d_head": 3}, "d_head=3 times rotary_fraction=1.0 gives 3, not an even number"),
    ({"position": "rotary", "rotary_fraction": 0.1}, "gives 0, not an even number"),
    ({"position": "rotary", "rotary_fraction": 1.5}, "rotary_fraction=1.5 must be above 0"),
    ({"position": "rotary", "rotary_base": 1.0}, "rotary_base=1.0 must be above 1"),
    ({"rotary_base": 5e5}, "rotary_base=500000.0 is read only with position=\"rotary\""),
    ({"rotary_fraction": 0.5}, "rotary_fraction=0.5 is read only"),
    ({"norm_epsilon": 1e-6}, "norm_epsilon=1e-06 is read only with norm"),
    ({"norm": "rms", "norm_epsilon": 0.0}, "norm_epsilon=0.0 must be positive"),
    ({"d_mlp": 0, "gated": True}, "gated=True is read only with d_mlp above 0"),
    ({"d_mlp": 0, "parallel": True}, "parallel=True is read only with d_mlp above 0"),
    ({"attention_scale": 0.0}, "attention_scale=0.0 must be a positive number"),
    ({"attention_scale": float("nan")}, "attention_scale=nan must be a positive number"),
]  # fmt: skip


def validated(record, **change):
    """A changed record past the tests' own type checks, which would speak before the record's."""
    made = object.__new__(type(record))
    for field in dataclasses.fields(record):
        object.__setattr__(made, field.name, change.get(field.name, getattr(record, field.name)))
    made.__post_init__()
    return made


@pytest.mark.parametrize(("change", "sentence"), REFUSED, ids=lambda x: str(x)[:40])
def test_an_invalid_config_is_one_clear_error(change: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        validated(SEED, **change)
    assert validated(SEED) == SEED


@given(config=configs())
def test_json_round_trip_keeps_value_and_hash(config: Config):
    again = Config.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "must be JSON"),
        ("[1]", "must be a JSON object, not list"),
        ('{"n_layer": 2}', "unknown Config field 'n_layer'"),
        ('{"n_layers": 2}', "lacks d_head, d_mlp, d_model, n_heads, n_vocab"),
        (SEED.to_json().replace('"n_heads": 4', '"n_heads": 0'), "n_heads=0 must be at least 1"),
    ],
)
def test_json_that_is_no_config_is_one_clear_error(text: str, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        Config.from_json(text)


def test_every_field_reaches_json():
    assert json.loads(MODERN.to_json()).keys() == {f.name for f in dataclasses.fields(Config)}


def test_a_config_is_static_under_jit_and_compiles_once_per_value():
    traces = []

    @jax.jit
    def f(config, x):
        traces.append(config)
        return x * config.n_heads

    f(SEED, 1.0)
    f(dataclasses.replace(SEED), 2.0)
    assert len(traces) == 1
    f(CLASSIC, 1.0)
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "float8"}, "dtype='float8' must be one of"),
        ({"dtype": "float64"}, "needs 64-bit JAX"),
        ({"kernel": "flash"}, "kernel='flash' must be one of 'einsum', 'blocked', 'fused'"),
        ({"unroll": 0}, "unroll=0 must be at least 1"),
        ({"remat": True}, "remat=True must be one of"),
    ],
)
def test_an_invalid_compute_is_one_clear_error(options: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        validated(Compute(), **options)
