"""Configs of every family: of old versions of transformers, of published models, and those that are refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jaxformer import Config, load, load_config
from jaxformer.config_checks import flat_fields
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.families import ONE_EACH, golden
from tests.helpers.hub_configs import CONFIGS


def read_config(case: str, change: dict, folder: Path) -> Config:
    record = golden(case)
    record._replace(config=record.config | change).write(folder)
    return load(folder).config


OLD: dict[str, tuple[str, dict, list[str]]] = {
    # case: the field that transformers 4 did not write, those it wrote instead, more fields that it did not write
    "llama-llama3": ("rope_parameters", {"rope_theta": 500.0, "rope_scaling": {
        "type": "llama3", "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0,
        "original_max_position_embeddings": 24}}, []),
    "llama-linear": ("rope_parameters", {"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 3.0}}, []),
    "gpt_neox-all_rotary": ("rope_parameters", {"rotary_emb_base": 50, "rotary_pct": 1.0}, []),
    "gemma3_text-plain": ("rope_parameters", {
        "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6}, ["layer_types"]),
    "gemma3_text-bases": ("rope_parameters", {
        "rope_theta": 300.0, "rope_local_base_freq": 20.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, []),
    "gemma2-plain": ("rope_parameters", {"rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh"}, ["layer_types"]),
}  # fmt: skip


@pytest.mark.parametrize("case", OLD)
def test_configs_written_by_transformers_4_are_read(case: str, tmp_path: Path):
    absent, instead, more = OLD[case]
    record = golden(case)
    record.write(tmp_path / "new")
    old = {k: v for k, v in record.config.items() if k not in (absent, *more)} | instead
    record._replace(config=old).write(tmp_path / "old")
    assert load(tmp_path / "old").config == load(tmp_path / "new").config


@pytest.mark.parametrize("case", ONE_EACH)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_sinks", 4), ("add_cross_attention", True), ("is_encoder_decoder", True),
        ("quantization_config", {"bits": 4}), ("pruned_heads", {"0": [1]}), ("use_bidirectional_attention", True),
    ],
)  # fmt: skip
def test_fields_that_no_family_supports_are_refused_by_name(
    case: str, name: str, value: object, tmp_path: Path
):
    with raises(ValueError, tmp_path / "config.json", f"{name}={value!r}"):
        read_config(case, {name: value}, tmp_path)


REFUSED = {
    "an activation": ("llama-plain", {"hidden_act": "quick_gelu"}, ("hidden_act='quick_gelu'", "'relu'")),
    "a kind": ("llama-plain", {"hidden_size": "16"}, ("hidden_size='16'", "int")),
    "layers": ("qwen2-plain", {"num_hidden_layers": 10**9}, ("num_hidden_layers=1000000000", 10000)),
    "a null": ("llama-plain", {"hidden_size": None}, ("hidden_size=None", "int")),
    "no number": ("llama-plain", {"rms_norm_eps": float("nan")}, ("rms_norm_eps=nan",)),
    "a boolean": ("gpt2-plain", {"scale_attn_weights": 1}, ("scale_attn_weights=1", "bool")),
    "yarn": (
        "llama-plain", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        ("rope_type='yarn'", "'linear'"),
    ),
    "two scalings": (
        "llama-linear", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ("rope_scaling", "rope_parameters"),
    ),
    "an unknown turn": (
        "llama-plain", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "beta_fast": 3}},
        ("rope_parameters", "beta_fast=3"),
    ),
    "part of a head": (
        "llama-plain", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        ("partial_rotary_factor=0.5",),
    ),
    "pairs": ("llama-plain", {"rope_interleaved": True}, ("rope_interleaved=True", "False")),
    "heads": (
        "llama-plain", {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None},
        ("hidden_size=16", "num_attention_heads=5"),
    ),
    "gpt2's heads": ("gpt2-plain", {"n_head": 0}, ("n_head=0", 1)),
    "groups": ("llama-plain", {"num_key_value_heads": 3}, ("n_heads=4", "n_kv_heads=3")),
    "layer types": ("qwen2-types", {"layer_types": ["full_attention"]}, ("layer_types", 1, "num_hidden_layers=3")),
    "a layer type": (
        "gemma2-plain", {"layer_types": ["chunked_attention"] * 3}, ("'chunked_attention'", "layer_types"),
    ),
    "no window": ("gemma2-plain", {"sliding_window": None}, ("layer_types",)),
    "neo's layers": ("gpt_neo-plain", {"attention_types": [[["global"], 2]]}, ("attention_types", 2, "num_layers=3")),
    "neo's form": (
        "gpt_neo-plain", {"attention_types": [3]}, ("attention_types=[3]", "[[['global', 'local'], 12]]"),
    ),
    "neo's lists": (
        "gpt_neo-plain", {"attention_layers": ["global"] * 3}, ("attention_layers", "attention_types"),
    ),
    "a cap": ("gemma3_text-plain", {"attn_logit_softcapping": 50.0}, ("attn_logit_softcapping=50.0",)),
    "experts": ("llama-plain", {"model_type": "mixtral"}, ("mixtral", "gpt_neox")),
    "more experts": ("llama-plain", {"model_type": "qwen3_moe"}, ("qwen3_moe", "gpt_neox")),
    "an unknown family": ("llama-plain", {"model_type": "bert"}, ("model_type='bert'", "gpt2", "gpt_neo")),
    "no family": ("llama-plain", {"model_type": None}, ("model_type=None",)),
    "pictures": ("gemma3_text-plain", {"model_type": "gemma3"}, ("gemma3", "gemma3_text")),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_config_that_cannot_be_computed_is_refused(what: str, tmp_path: Path):
    case, change, named = REFUSED[what]
    with raises(ValueError, tmp_path, *named):
        read_config(case, change, tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_of_published_models_are_read(name: str, tmp_path: Path):
    fields, expected = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = load_config(tmp_path)
    assert {field: flat_fields(config)[field] for field in expected} == expected


@pytest.mark.parametrize(("width", "part"), [(22, 0.25), (30, 0.25), (100, 0.58), (20, 0.3)])
def test_the_rotated_part_of_a_head_is_rounded_down_and_must_be_even(
    width: int, part: float, tmp_path: Path
):
    fields = CONFIGS["Pythia"][0] | {
        "hidden_size": 2 * width, "num_attention_heads": 2, "rotary_pct": part, "partial_rotary_factor": part,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    rotated = int(width * part)
    if rotated % 2:
        with raises(ValueError, tmp_path, rotated, width, part):
            load_config(tmp_path)
    else:
        assert load_config(tmp_path).rotary_width == rotated


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.sampled_from([10**30, -(10**400)]), st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@given(data=st.data())
@examples(50)
def test_any_value_of_any_field_gives_a_config_or_an_error_that_names_the_file(
    tmp_path: Path, data
):
    case = data.draw(st.sampled_from(ONE_EACH))
    fields = dict(golden(case).config)
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3)):
        fields[name] = data.draw(VALUES)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    try:
        load_config(tmp_path)
    except TypeCheckError:
        pass
    except ValueError as error:
        assert str(path) in str(error)
