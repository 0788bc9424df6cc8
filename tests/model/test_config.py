"""Config and Compute: plain data, every invalid one refused by naming what is wrong in it."""

import dataclasses
import json

import jax
import pytest
from hypothesis import given

from jaxformer import Compute, Config
from tests.helpers.errors import raises
from tests.helpers.models import CLASSIC, LATE, SEED, WINDOWED, configs

LLAMA = {"position": "rotary", "rotary_scaling": "llama3", "rotary_factor": 8.0, "rotary_context": 99}  # fmt: skip
REFUSED = [
    ({"n_heads": 0}, ("n_heads=0", 1)), ({"n_layers": -1}, ("n_layers=-1", 0)), ({"d_model": 8.0}, ("d_model=8.0",)),
    ({"d_mlp": True}, ("d_mlp=True",)), ({"n_kv_heads": 3}, ("n_heads=4", "n_kv_heads=3", [1, 2, 4])),
    ({"n_kv_heads": 0}, ("n_kv_heads=0", 1)),
    ({"position": "rotatory"}, ("position='rotatory'", "'none'", "'sinusoidal'")),
    ({"norm": None}, ("norm=None", "'layer'")), ({"activation": "swish"}, ("activation='swish'", "'silu'")),
    ({"bias": "some"}, ("bias='some'", "'all'")), ({"gated": 1}, ("gated=1", True, False)),
    ({"position": "learned"}, ('position="learned"', "n_context")),
    ({"position": "learned", "n_context": 0}, ("n_context=0", 1)),
    ({"n_context": 8}, ("n_context=8", 'position="learned"')),
    ({"position": "sinusoidal", "d_model": 7}, ('position="sinusoidal"', "d_model", 7)),
    ({"position": "rotary", "d_head": 3}, ("d_head=3", "rotary_fraction=1.0")),
    ({"position": "rotary", "rotary_fraction": 0.1}, ("d_head=4", "rotary_fraction=0.1")),
    ({"position": "rotary", "rotary_fraction": 1.5}, ("rotary_fraction=1.5",)),
    ({"position": "rotary", "rotary_base": 1.0}, ("rotary_base=1.0", 1)),
    ({"rotary_base": 5e5}, ("rotary_base=500000.0", 'position="rotary"')),
    ({"rotary_fraction": 0.5}, ("rotary_fraction=0.5", 'position="rotary"')),
    ({"norm_epsilon": 1e-6}, ("norm_epsilon=1e-06", 'norm="layer"')),
    ({"norm": "rms", "norm_epsilon": 0.0}, ("norm_epsilon=0.0", "1e-5")),
    ({"norm": "rms", "norm_epsilon": float("inf")}, ("norm_epsilon=inf",)),
    ({"norm_place": "after"}, ("norm_place='after'", 'norm="layer"', "'before'")),
    ({"norm": "rms", "norm_place": "between"}, ("norm_place='between'", "'before'", "'after'", "'both'")),
    ({"norm_plus_one": True}, ("norm_plus_one=True", 'norm="layer"', "qk_norm")),
    ({"qk_norm": "heads"}, ("qk_norm='heads'", "'none'", "'head'", "'all'")),
    ({"qk_norm": "head", "norm_place": "both"}, ("norm_place='both'", 'norm="layer"')),
    ({"qk_norm": "head", "norm_epsilon": -1.0}, ("norm_epsilon=-1.0",)),
    ({"embedding_scale": 0.0}, ("embedding_scale=0.0", "1.0")),
    ({"embedding_scale": None}, ("embedding_scale=None",)), ({"attention_cap": 0.0}, ("attention_cap=0.0", None)),
    ({"logit_cap": -30.0}, ("logit_cap=-30.0",)), ({"scale_by_depth": 1}, ("scale_by_depth=1", True, False)),
    ({"window": 0}, ("window=0", 1)), ({"window": 2, "window_pattern": ""}, ("window_pattern=''", "L", "G")),
    ({"window": 2, "window_pattern": "LX"}, ("window_pattern='LX'", "L", "G")),
    ({"window_pattern": "LG"}, ("window_pattern='LG'", "window", "'L'")),
    ({"rotary_scaling": "linear"}, ("rotary_scaling='linear'", 'position="rotary"')),
    ({"position": "rotary", "rotary_scaling": "yarn"}, ("rotary_scaling='yarn'", "'none'", "'linear'")),
    ({"position": "rotary", "rotary_factor": 2.0}, ("rotary_factor=2.0", 'rotary_scaling="linear"')),
    ({"position": "rotary", "rotary_scaling": "linear", "rotary_factor": 0.0}, ("rotary_factor=0.0",)),
    ({"position": "rotary", "rotary_scaling": "linear", "rotary_context": 9}, ("rotary_context=9",)),
    ({"position": "rotary", "rotary_low": 2.0}, ("rotary_low=2.0", 'rotary_scaling="llama3"')),
    ({"position": "rotary", "rotary_high": 2.0}, ("rotary_high=2.0", 'rotary_scaling="llama3"')),
    (LLAMA | {"rotary_context": None}, ('rotary_scaling="llama3"', "rotary_context", 8192)),
    (LLAMA | {"rotary_context": 0}, ("rotary_context=0", 1)),
    (LLAMA | {"rotary_low": 4.0}, ("rotary_low=4.0", "rotary_high=4.0")),
    ({"position": "rotary", "local_rotary_base": 9.0}, ("local_rotary_base=9.0", "window")),
    ({"window": 2, "local_rotary_base": 9.0}, ("local_rotary_base=9.0", 'position="rotary"')),
    ({"position": "rotary", "window": 2, "local_rotary_base": 1.0}, ("local_rotary_base=1.0", 1)),
    ({"d_mlp": 0, "gated": True}, ("gated=True", "d_mlp")),
    ({"d_mlp": 0, "parallel": True}, ("parallel=True", "d_mlp")),
    ({"attention_scale": 0.0}, ("attention_scale=0.0",)),
    ({"attention_scale": float("nan")}, ("attention_scale=nan",)),
]  # fmt: skip


def validated(record, **change):
    """A changed record past the tests' own type checks, which would speak before the record's."""
    made = object.__new__(type(record))
    for field in dataclasses.fields(record):
        object.__setattr__(made, field.name, change.get(field.name, getattr(record, field.name)))
    made.__post_init__()
    return made


@pytest.mark.parametrize(("change", "named"), REFUSED, ids=lambda x: str(x)[:40])
def test_an_invalid_config_is_one_clear_error(change: dict, named: tuple):
    with raises(ValueError, *named):
        validated(SEED, **change)
    assert validated(SEED) == SEED


def test_a_config_that_was_saved_before_a_choice_was_there_lacks_it_now():
    fields = json.loads(WINDOWED.to_json())
    for late in LATE:
        del fields[late]
    assert Config.from_json(json.dumps(fields)) == WINDOWED


@pytest.mark.parametrize(
    ("config", "pattern", "local"),
    [(WINDOWED, "L", (1, 1, 1)), (WINDOWED, "LG", (1, 0, 1)), (WINDOWED, "GGL", (0, 0, 1)), (WINDOWED, "G", (0, 0, 0)),
     (WINDOWED, "LLLG", (1, 1, 1)),  # the fourth layer is not there
     (SEED, "L", (0, 0, 0))],
)  # fmt: skip
def test_a_pattern_of_windows_begins_anew_after_its_last_letter(
    config: Config, pattern: str, local: tuple
):
    config = dataclasses.replace(config, n_layers=3, window_pattern=pattern)
    assert config.local_layers == local
    assert (config.horizon is not None) == all(local)


@given(config=configs())
def test_json_round_trip_keeps_every_field_the_value_and_the_hash(config: Config):
    text = config.to_json()
    assert json.loads(text).keys() == {f.name for f in dataclasses.fields(Config)}
    again = Config.from_json(text)
    assert (again, hash(again)) == (config, hash(config))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", ("Config",)), ("[1]", ("Config", "list")), ('{"n_layer": 2}', ("'n_layer'", "n_layers")),
        ('{"n_layers": 2}', ("d_head", "d_mlp", "d_model", "n_heads", "n_vocab")),
        (SEED.to_json().replace('"n_heads": 4', '"n_heads": 0'), ("n_heads=0", 1)),
    ],
)  # fmt: skip
def test_json_that_is_no_config_is_one_clear_error(text: str, named: tuple):
    with raises(ValueError, *named):
        Config.from_json(text)


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


REFUSED_COMPUTES = [
    ({"dtype": "float8"}, ("dtype='float8'", "'bfloat16'")),
    ({"dtype": "float64"}, ('dtype="float64"', "jax_enable_x64")),
    ({"kernel": "flash"}, ("kernel='flash'", "'einsum'", "'blocked'", "'fused'")),
    ({"unroll": 0}, ("unroll=0", 1)), ({"remat": True}, ("remat=True", "'block'")),
    ({"saved": ("z",)}, ("saved=('z',)", 'remat="sites"', "'none'")),
    ({"remat": "sites"}, ('remat="sites"', "saved", 'remat="block"')),
    ({"remat": "sites", "saved": ("z", "q", "z")}, ("saved=('z', 'q', 'z')", "'z'")),
    ({"remat": "sites", "saved": ("zz",)}, ("saved=('zz',)", "'attn_scale'")),
    ({"remat": "sites", "saved": ("final",)}, ("saved=('final',)", "'attn_scale'")),
    ({"remat": "sites", "saved": ("head_out",)}, ("saved=('head_out',)", "'attn_scale'")),
    ({"remat": "sites", "saved": "z"}, ("saved='z'", "'attn_scale'")),
    ({"remat": "sites", "saved": ["z"]}, ("saved=['z']", "'attn_scale'")),
    ({"remat": "sites", "saved": ("z", "pattern"), "kernel": "blocked"}, ("kernel='blocked'", "'pattern'", "saved")),
]  # fmt: skip


@pytest.mark.parametrize(("options", "named"), REFUSED_COMPUTES, ids=lambda x: str(x)[:40])
def test_an_invalid_compute_is_one_clear_error(options: dict, named: tuple):
    with raises(ValueError, *named):
        validated(Compute(), **options)
