"""Config and Compute: plain data, every invalid one refused by a sentence."""

import dataclasses
import json

import jax
import pytest
from hypothesis import given

from jaxformer import Compute, Config
from tests.helpers.models import CLASSIC, LATE, MODERN, SEED, WINDOWED, configs

LLAMA = {
    "position": "rotary",
    "rotary_scaling": "llama3",
    "rotary_factor": 8.0,
    "rotary_context": 99,
}
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
    ({"norm": "rms", "norm_epsilon": 0.0}, "norm_epsilon=0.0 must be a positive number; 1e-5 is usual"),
    ({"norm": "rms", "norm_epsilon": float("inf")}, "norm_epsilon=inf must be a positive number"),
    ({"norm_place": "after"}, "norm_place='after' is read only with norm=\"layer\" or \"rms\"; leave it at 'before'"),
    ({"norm": "rms", "norm_place": "between"}, "norm_place='between' must be one of 'before', 'after', 'both'"),
    ({"norm_plus_one": True}, "norm_plus_one=True is read only with norm=.* or a qk_norm"),
    ({"qk_norm": "heads"}, "qk_norm='heads' must be one of 'none', 'head', 'all'"),
    ({"qk_norm": "head", "norm_place": "both"}, "norm_place='both' is read only"),
    ({"qk_norm": "head", "norm_epsilon": -1.0}, "norm_epsilon=-1.0 must be a positive number"),
    ({"embedding_scale": 0.0}, "embedding_scale=0.0 must be a positive number; 1.0 leaves"),
    ({"embedding_scale": None}, "embedding_scale=None must be a number"),
    ({"attention_cap": 0.0}, "attention_cap=0.0 must be a positive number; leave it None for no cap"),
    ({"logit_cap": -30.0}, "logit_cap=-30.0 must be a positive number"),
    ({"scale_by_depth": 1}, "scale_by_depth=1 must be True or False"),
    ({"window": 0}, "window=0 must be at least 1"),
    ({"window": 2, "window_pattern": ""}, "window_pattern='' must be one or more of the letters L and G"),
    ({"window": 2, "window_pattern": "LX"}, "window_pattern='LX' must be one or more of the letters"),
    ({"window_pattern": "LG"}, "window_pattern='LG' is read only with a window; leave it at 'L'"),
    ({"rotary_scaling": "linear"}, "rotary_scaling='linear' is read only with position=\"rotary\""),
    ({"position": "rotary", "rotary_scaling": "yarn"}, "rotary_scaling='yarn' must be one of 'none', 'linear'"),
    ({"position": "rotary", "rotary_factor": 2.0}, "rotary_factor=2.0 is read only with rotary_scaling="),
    ({"position": "rotary", "rotary_scaling": "linear", "rotary_factor": 0.0}, "rotary_factor=0.0 must be a positive"),
    ({"position": "rotary", "rotary_scaling": "linear", "rotary_context": 9}, "rotary_context=9 is read only"),
    ({"position": "rotary", "rotary_low": 2.0}, "rotary_low=2.0 is read only with rotary_scaling=\"llama3\""),
    ({"position": "rotary", "rotary_high": 2.0}, "rotary_high=2.0 is read only with rotary_scaling=\"llama3\""),
    (LLAMA | {"rotary_context": None}, "rotary_scaling=\"llama3\" needs rotary_context, 8192 in Llama 3"),
    (LLAMA | {"rotary_context": 0}, "rotary_context=0 must be at least 1"),
    (LLAMA | {"rotary_low": 4.0}, "rotary_low=4.0 must be above 0 and below rotary_high=4.0"),
    ({"position": "rotary", "local_rotary_base": 9.0}, "local_rotary_base=9.0 is read only with .* and a window"),
    ({"window": 2, "local_rotary_base": 9.0}, "local_rotary_base=9.0 is read only with position"),
    ({"position": "rotary", "window": 2, "local_rotary_base": 1.0}, "local_rotary_base=1.0 must be above 1"),
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


def test_a_config_that_was_saved_before_a_choice_was_there_lacks_it_now():
    fields = json.loads(WINDOWED.to_json())
    for late in LATE:
        del fields[late]
    assert Config.from_json(json.dumps(fields)) == WINDOWED


@pytest.mark.parametrize(
    ("pattern", "local", "forgets"),
    [
        ("L", (True, True, True), True),
        ("LG", (True, False, True), False),
        ("GGL", (False, False, True), False),
        ("LLLG", (True, True, True), True),  # the fourth layer is not there
        ("G", (False, False, False), False),
    ],
)
def test_a_pattern_of_windows_begins_anew_after_its_last_letter(pattern: str, local, forgets: bool):
    config = dataclasses.replace(WINDOWED, n_layers=3, window_pattern=pattern)
    assert (config.local_layers, config.horizon is not None) == (local, forgets)
    endless = dataclasses.replace(SEED, n_layers=3)
    assert (endless.local_layers, endless.horizon is not None) == ((False,) * 3, False)


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
