"""`load(..., ignore=...)`: a field that jaxformer refuses is left out, and nothing else is."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from jaxformer import load, load_config, save
from tests.helpers import ggufs
from tests.helpers.errors import raises
from tests.helpers.families import ONE_EACH, golden
from tests.helpers.models import SEED, random_params, same

REFUSED: dict[str, tuple[str, dict, tuple[str, ...]]] = {
    "unknown": ("llama-plain", {"attention_sinks": 4}, ("attention_sinks",)),
    "two unknown": ("llama-plain", {"sinks": 4, "attention_sinks": 4}, ("attention_sinks", "sinks")),
    "one supported value": ("llama-plain", {"rope_interleaved": True}, ("rope_interleaved",)),
    "of every family": ("gpt2-plain", {"add_cross_attention": True}, ("add_cross_attention",)),
    "a cap": ("gemma3_text-plain", {"attn_logit_softcapping": 50.0}, ("attn_logit_softcapping",)),
    "of a table": ("llama-plain", {"rope_scaling": {"mscale": 2.0}, "rope_parameters": None}, ("rope_scaling.mscale",)),
    "a scaling": (
        "llama-plain", {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 3}, "rope_parameters": None},
        ("rope_scaling.type",),
    ),
    "a scaling of transformers 5": (
        "llama-plain", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
        ("rope_parameters.rope_type",),
    ),
}  # fmt: skip
"""Of config.json: the case, what is changed in it, and the fields that are refused."""


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_field_of_config_json_is_left_out_when_ignore_names_it(what: str, tmp_path: Path):
    case, change, names = REFUSED[what]
    record = golden(case)
    record._replace(config=record.config | change).write(tmp_path / "with")
    record.write(tmp_path / "without")
    for read in (load, load_config):
        with raises(ValueError, tmp_path / "with", repr(names).replace("'", '"')):
            read(tmp_path / "with")
    params, config, _ = load(tmp_path / "with", ignore=names)
    expected, plain, _ = load(tmp_path / "without")
    assert config == plain == load_config(tmp_path / "with", ignore=[*names])
    same(params, expected)


@pytest.mark.parametrize("case", ONE_EACH)
def test_every_family_leaves_out_an_unknown_field(case: str, tmp_path: Path):
    record = golden(case)
    record.write(tmp_path / "without")
    record._replace(config=record.config | {"attention_sinks": 4}).write(tmp_path / "with")
    ignore = ("attention_sinks",)
    assert load_config(tmp_path / "with", ignore=ignore) == load_config(tmp_path / "without")


@pytest.mark.parametrize(
    ("case", "edit", "name"),
    [
        ("llama-plain", lambda w: w.add_logit_scale(2.0), "llama.logit_scale"),
        ("qwen2-plain", lambda w: w.add_sliding_window(3), "qwen2.attention.sliding_window"),
        ("qwen2-plain", lambda w: w.add_causal_attention(False), "qwen2.attention.causal"),
        ("llama-plain", lambda w: w.add_rope_scaling_attn_factors(2.0), "llama.rope.scaling.attn_factor"),
        ("llama-plain", lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "llama.rope.scaling.type"),
    ],
)  # fmt: skip
def test_a_refused_field_of_a_gguf_file_is_left_out_when_ignore_names_it(
    case: str, edit: ggufs.Edit, name: str, tmp_path: Path
):
    path = tmp_path / "with.gguf"
    ggufs.write(path, golden(case), edit)
    ggufs.write(tmp_path / "without.gguf", golden(case))
    with raises(ValueError, path, f'ignore=("{name}",)'):
        load(path)
    params, config, _ = load(path, ignore=(name,))
    expected, plain, _ = load(tmp_path / "without.gguf")
    assert config == plain == load_config(path, ignore=(name,))
    same(params, expected)


def test_the_next_refusal_names_the_fields_that_are_ignored_already(tmp_path: Path):
    record = golden("llama-plain")
    record._replace(config=record.config | {"rope_interleaved": True, "sinks": 4}).write(tmp_path)
    with raises(ValueError, "rope_interleaved=True", 'ignore=("rope_interleaved", "sinks")'):
        load(tmp_path, ignore=("sinks",))
    assert load(tmp_path, ignore=("rope_interleaved", "sinks")).config == load_config(
        tmp_path, ignore=("rope_interleaved", "sinks")
    )


def test_a_name_that_the_file_does_not_have_is_refused(tmp_path: Path):
    golden("llama-plain").write(tmp_path / "folder")
    ggufs.write(tmp_path / "a.gguf", golden("llama-plain"))
    for place in (tmp_path / "folder", tmp_path / "a.gguf"):
        for read in (load, load_config):
            with raises(ValueError, "'attention_sinks'", place):
                read(place, ignore=("attention_sinks",))
    save(tmp_path / "saved", random_params(SEED), SEED)
    for read in (load, load_config):
        with raises(ValueError, tmp_path / "saved" / "model.json", 'ignore=("d_model",)'):
            read(tmp_path / "saved", ignore=("d_model",))


@pytest.mark.parametrize(
    "name", ["hidden_size", "rms_norm_eps", "hidden_act", "rope_parameters", "rope_parameters.rope_theta",
             "rope_parameters.rope_type"],
)  # fmt: skip
def test_a_field_that_is_read_cannot_be_ignored(name: str, tmp_path: Path):
    golden("llama-linear").write(tmp_path)
    with raises(ValueError, repr(name), tmp_path / "config.json"):
        load(tmp_path, ignore=(name,))


@pytest.mark.parametrize("key", ["block_count", "rope.freq_base", "attention.head_count_kv"])
def test_a_field_of_a_gguf_file_that_is_read_cannot_be_ignored(key: str, tmp_path: Path):
    ggufs.write(tmp_path / "a.gguf", golden("llama-plain"))
    with raises(ValueError, repr(f"llama.{key}"), tmp_path / "a.gguf"):
        load(tmp_path / "a.gguf", ignore=(f"llama.{key}",))


def test_experts_cannot_be_ignored(tmp_path: Path):
    ggufs.write(tmp_path / "a.gguf", golden("llama-plain"), lambda w: w.add_expert_count(8))
    with raises(ValueError, "llama.expert_count=8"):
        load(tmp_path / "a.gguf", ignore=("llama.expert_count",))


def test_a_string_is_refused_with_its_tuple(tmp_path: Path):
    wrong: Any = "sinks"
    for read in (load, load_config):
        with raises(ValueError, "ignore='sinks'", 'ignore=("sinks",)'):
            read(tmp_path, ignore=wrong)


def test_tensors_of_an_ignored_field_are_still_refused(tmp_path: Path):
    """The model is read without the field, not without what the field described."""
    record = golden("llama-plain")
    tensors = record.tensors | {"model.sinks": np.ones(4, np.float32)}
    record._replace(config=record.config | {"sinks": 4}, tensors=tensors).write(tmp_path)
    with raises(ValueError, "model.sinks"):
        load(tmp_path, ignore=("sinks",))
