"""Config and Compute: plain data, every invalid one refused by naming what is wrong in it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxformer import Compute, Config, Rotary, available_sites, forward, specs
from jaxformer.config_checks import FORMER_NAMES, flat_fields, unread_fields
from tests.helpers.errors import raises
from tests.helpers.models import (
    CLASSIC,
    LATE,
    SEED,
    WINDOWED,
    changed,
    configs,
    random_params,
    same,
)

LLAMA = {
    "position": "rotary", "rotary.scaling": "llama3", "rotary.factor": 8.0, "rotary.original_context": 99,
}  # fmt: skip
REFUSED = [
    ({"n_heads": 0}, ("n_heads=0", 1)), ({"n_layers": -1}, ("n_layers=-1", 0)), ({"d_model": 8.0}, ("d_model=8.0",)),
    ({"d_mlp": True}, ("d_mlp=True",)), ({"n_kv_heads": 3}, ("n_heads=4", "n_kv_heads=3", [1, 2, 4])),
    ({"n_kv_heads": 0}, ("n_kv_heads=0", 1)),
    ({"position": "rotatory"}, ("position='rotatory'", "'none'", "'sinusoidal'")),
    ({"norm": None}, ("norm=None", "'layer'")), ({"activation": "swish"}, ("activation='swish'", "'silu'")),
    ({"bias": "some"}, ("bias='some'", "'all'")), ({"gated": 1}, ("gated=1", True, False)),
    ({"position": "learned"}, ('position="learned"', "n_context")),
    ({"position": "learned", "n_context": 0}, ("n_context=0", 1)),
    ({"position": "sinusoidal", "d_model": 7}, ('position="sinusoidal"', "d_model", 7)),
    ({"position": "rotary", "d_head": 3}, ("d_head=3", "rotary.fraction=1.0")),
    ({"position": "rotary", "rotary.fraction": 0.1}, ("d_head=4", "rotary.fraction=0.1")),
    ({"position": "rotary", "rotary.fraction": 1.5}, ("rotary.fraction=1.5",)),
    ({"position": "rotary", "rotary.base": 1.0}, ("rotary.base=1.0", 1)),
    ({"norm": "rms", "norm_epsilon": 0.0}, ("norm_epsilon=0.0", "1e-5")),
    ({"norm": "rms", "norm_epsilon": float("inf")}, ("norm_epsilon=inf",)),
    ({"norm": "rms", "norm_place": "between"}, ("norm_place='between'", "'before'", "'after'", "'both'")),
    ({"qk_norm": "heads"}, ("qk_norm='heads'", "'none'", "'head'", "'all'")),
    ({"qk_norm": "head", "norm_epsilon": -1.0}, ("norm_epsilon=-1.0",)),
    ({"embedding_scale": 0.0}, ("embedding_scale=0.0", "1.0")),
    ({"embedding_scale": None}, ("embedding_scale=None",)),
    ({"attention_soft_cap": 0.0}, ("attention_soft_cap=0.0", None)),
    ({"logit_soft_cap": -30.0}, ("logit_soft_cap=-30.0",)),
    ({"scale_scores_by_layer": 1}, ("scale_scores_by_layer=1", True, False)),
    ({"window": 0}, ("window=0", 1)), ({"window": 2, "window_pattern": ""}, ("window_pattern=''", "L", "G")),
    ({"window": 2, "window_pattern": "LX"}, ("window_pattern='LX'", "L", "G")),
    ({"position": "rotary", "rotary.scaling": "yarn"}, ("rotary.scaling='yarn'", "'none'", "'linear'")),
    ({"position": "rotary", "rotary.scaling": "linear", "rotary.factor": 0.0}, ("rotary.factor=0.0",)),
    (LLAMA | {"rotary.original_context": None}, ('rotary.scaling="llama3"', "rotary.original_context", 8192)),
    (LLAMA | {"rotary.original_context": 0}, ("rotary.original_context=0", 1)),
    (LLAMA | {"rotary.low_turns": 4.0}, ("rotary.low_turns=4.0", "rotary.high_turns=4.0")),
    ({"position": "rotary", "window": 2, "rotary.local_base": 1.0}, ("rotary.local_base=1.0", 1)),
    ({"attention_scale": 0.0}, ("attention_scale=0.0",)),
    ({"attention_scale": float("nan")}, ("attention_scale=nan",)),
]  # fmt: skip


UNREAD = [
    {"n_context": 8}, {"rotary.base": 5e5}, {"rotary.fraction": 0.5}, {"rotary.scaling": "linear"},
    {"norm_epsilon": 1e-6}, {"norm_place": "after"}, {"norm_plus_one": True}, {"window_pattern": "LG"},
    {"position": "rotary", "rotary.factor": 2.0}, {"position": "rotary", "rotary.low_turns": 2.0},
    {"position": "rotary", "rotary.local_base": 9.0}, {"position": "rotary", "rotary.original_context": 9},
    {"window": 2, "rotary.local_base": 9.0}, {"qk_norm": "head", "norm_place": "both"},
    {"d_mlp": 0, "gated": True}, {"d_mlp": 0, "parallel": True}, {"d_mlp": 0, "activation": "silu"},
]  # fmt: skip
"""Choices whose last field nothing reads."""


def validated(record, change: dict):
    """A changed record past the tests' own type checks, which would speak before the record's."""
    nested = {n.removeprefix("rotary."): x for n, x in change.items() if n.startswith("rotary.")}
    change = change | ({"rotary": validated(Rotary(), nested)} if nested else {})
    made = object.__new__(type(record))
    for field in dataclasses.fields(record):
        object.__setattr__(made, field.name, change.get(field.name, getattr(record, field.name)))
    made.__post_init__()
    return made


@pytest.mark.parametrize(("change", "named"), REFUSED, ids=lambda x: str(x)[:40])
def test_an_invalid_config_is_one_clear_error(change: dict, named: tuple):
    with raises(ValueError, *named):
        validated(SEED, change)
    assert validated(SEED, {}) == SEED


@pytest.mark.parametrize("choices", UNREAD, ids=str)
def test_a_value_that_nothing_reads_is_allowed_and_changes_nothing(choices: dict):
    *_, unread = choices
    config = changed(SEED, choices)
    plain = changed(config, {unread: flat_fields(SEED)[unread]})
    assert unread in unread_fields(config)
    assert specs(config) == specs(plain)
    assert available_sites(config) == available_sites(plain)
    params, tokens = random_params(config), jnp.array([3, 1, 4, 1])
    same(forward(params, config, tokens), forward(params, plain, tokens))


def test_an_architecture_sweep_replaces_one_field():
    learned = dataclasses.replace(CLASSIC, position="none")
    assert learned.max_length is None
    assert specs(learned).W_pos is None
    assert dataclasses.replace(learned, position="learned") == CLASSIC


def test_numbers_of_numpy_are_taken_as_pythons():
    numpy = {"d_mlp": np.int64(5), "gated": np.bool_(True), "attention_scale": np.float32(0.5)}
    config = validated(SEED, numpy)
    assert (config.d_mlp, config.gated, config.attention_scale) == (5, True, 0.5)
    assert [type(x) for x in (config.d_mlp, config.gated, config.attention_scale)] == [int, bool, float]  # fmt: skip
    assert Config.from_json(config.to_json()) == config
    assert hash(config) == hash(Config.from_json(config.to_json()))


def test_a_repr_shows_what_differs_from_the_defaults_and_makes_the_config_again():
    config = changed(SEED, {"position": "rotary", "rotary.base": 100.0})
    assert repr(config).startswith(repr(SEED)[:-1])
    assert repr(config).endswith("position='rotary', rotary=Rotary(base=100.0))")
    assert eval(repr(config), {"Config": Config, "Rotary": Rotary}) == config  # noqa: S307
    assert repr(Compute()) == "Compute()"


def test_the_json_of_earlier_versions_loads():
    config = changed(
        SEED,
        {"position": "rotary", "rotary.base": 50.0, "window": 2, "rotary.local_base": 9.0}
        | {"logit_soft_cap": 3.0, "attention_soft_cap": 2.0, "scale_scores_by_layer": True},
    )
    now = {name: former for former, name in FORMER_NAMES.items()}
    fields = {now.get(name, name): value for name, value in flat_fields(config).items()}
    assert {"rotary_base", "local_rotary_base", "attention_cap", "scale_by_depth"} <= fields.keys()
    assert Config.from_json(json.dumps(fields)) == config


def test_a_config_that_was_saved_before_a_choice_was_there_lacks_it_now():
    fields = flat_fields(WINDOWED)
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
    assert (config.max_lookback is not None) == all(local)


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
        validated(Compute(), options)
