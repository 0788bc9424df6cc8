"""A GGUF file loads as the same model, bit for bit: llama.cpp's names and permutations are undone."""

import json
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import forward, load, load_config
from jaxformer.config_checks import flat_fields
from jaxformer.pretrained.families.gguf_names import DIALECTS
from tests.helpers import ggufs
from tests.helpers.errors import raises
from tests.helpers.families import CASES, TOKENS, Golden, close, golden
from tests.helpers.models import same

KEPT = [
    "gpt2-plain", "gpt2-untied", "llama-plain", "llama-tied", "llama-multi_query", "llama-head_dim", "llama-linear",
    "llama-attention_bias", "llama-mlp_bias", "mistral-no_window", "qwen2-plain", "qwen2-tied", "qwen2-linear",
    "qwen3-plain", "qwen3-tied", "gemma2-plain", "gemma2-low_caps", "gemma3_text-plain",
    "olmo2-plain", "olmo2-tied", "olmo2-no_groups",
]  # fmt: skip
"""The cases that a GGUF file can express."""


@pytest.mark.slow(unless=("llama-tied", "gemma2-low_caps"))
@pytest.mark.parametrize("case", KEPT)
def test_a_gguf_file_loads_as_the_model_that_it_was_written_from(case: str, tmp_path: Path):
    record = golden(case)
    record.write(tmp_path / "folder")
    ggufs.write(tmp_path / "model.gguf", record)
    params, config, tokenizer = load(tmp_path / "model.gguf")
    expected, again, _ = load(tmp_path / "folder")
    assert config == again
    assert tokenizer is None
    same(params, expected)
    close(forward(params, config, jnp.asarray(TOKENS)).logits, record.logits, 1e-5)


def test_a_folder_with_one_gguf_file_loads_as_that_file(tmp_path: Path):
    ggufs.write(tmp_path / "model.gguf", golden("qwen3-plain"))
    same(load(tmp_path).params, load(tmp_path / "model.gguf").params)
    (tmp_path / "config.json").write_text(json.dumps(golden("qwen3-plain").config))
    same(load(tmp_path).params, load(tmp_path / "model.gguf").params)
    (tmp_path / "config.json").unlink()
    ggufs.write(tmp_path / "other.gguf", golden("qwen3-plain"))
    with raises(FileNotFoundError, tmp_path, "2 GGUF files"):
        load(tmp_path)


def llama3_factors(base: float, pairs: int, factor: float, low: float, high: float, context: int):
    """The tensor rope_freqs as llama.cpp's converter computes it."""
    wavelengths = 2 * np.pi * base ** (np.arange(pairs) / pairs)
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    kept = np.where(wavelengths < context / high, 1.0, between)
    return np.where(wavelengths > context / low, factor, kept).astype(np.float32)


def wider(record: Golden, **change: Any) -> Golden:
    """The tiny Llama widened to d_model=256, n_heads=4, n_kv_heads=2 and d_head=64."""
    sizes = {16: 256, 8: 128}
    tensors = {
        n: np.resize(t, [sizes.get(s) or s for s in t.shape]) for n, t in record.tensors.items()
    }
    config = record.config | {"head_dim": 64, "hidden_size": 256} | change
    return record._replace(config=config, tensors=tensors)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_s_scaling_is_recognised_by_its_factors(factor: float, tmp_path: Path):
    turns = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    record = wider(golden("llama-plain"), rope_parameters=turns)
    factors = llama3_factors(5e5, 32, factor, 1.0, 4.0, 8192)
    record.write(tmp_path / "folder")
    for name, f in (("a.gguf", factors), ("b.gguf", factors**2)):
        ggufs.write(tmp_path / name, record, lambda w, f=f: w.add_tensor("rope_freqs.weight", f))
    params, config, _ = load(tmp_path / "a.gguf")
    expected, again, _ = load(tmp_path / "folder")
    assert config == again
    same(params, expected)
    with raises(ValueError, tmp_path / "b.gguf", "rope_freqs.weight"):
        load(tmp_path / "b.gguf")


def test_quantised_rows_are_permuted_too(tmp_path: Path):
    """llama.cpp permutes rows and then quantises them; the reader dequantises and then undoes the permutation."""
    record, name = wider(golden("llama-plain")), "model.layers.1.self_attn.q_proj.weight"
    matrix, q8 = record.tensors.pop(name), gguf.GGMLQuantizationType.Q8_0
    blocks = gguf.quants.quantize(ggufs._converted(name, matrix, record.config), q8)
    ggufs.write(
        tmp_path / "a.gguf", record, lambda w: w.add_tensor("blk.1.attn_q.weight", blocks, raw_dtype=q8)
    )  # fmt: skip
    params, config, _ = load(tmp_path / "a.gguf")
    assert params.W_E.dtype == jnp.float32
    plain = matrix.reshape(4, 64, 256).transpose(2, 0, 1)
    error = np.abs(np.asarray(params.blocks.attn.W_Q[1]) - plain).max()
    assert 0 < error < np.abs(plain).max() / 127
    assert config.d_head == 64


REFUSED = {
    "experts": ("llama-plain", lambda w: w.add_expert_count(8), ("llama.expert_count=8",)),
    "a field": ("llama-plain", lambda w: w.add_logit_scale(2.0), ("llama.logit_scale=2.0",)),
    "scaling": (
        "llama-plain", lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        ("llama.rope.scaling.type='yarn'", "'linear'"),
    ),
    "a scaling's field": (
        "llama-plain", lambda w: w.add_rope_scaling_attn_factors(2.0), ("llama.rope.scaling.attn_factor=2.0",),
    ),
    "a window": ("qwen2-plain", lambda w: w.add_sliding_window(3), ("qwen2.attention.sliding_window=3",)),
    "part of a head": ("qwen2-plain", lambda w: w.add_rope_dimension_count(2), ("qwen2.rope.dimension_count=2", 4)),
    "wider values": ("qwen2-plain", lambda w: w.add_value_length(8), ("qwen2.attention.value_length=8",)),
    "not causal": ("qwen2-plain", lambda w: w.add_causal_attention(False), ("qwen2.attention.causal=False",)),
    "two scalings": (
        "llama-linear", lambda w: w.add_tensor("rope_freqs.weight", np.ones(2, np.float32)),
        ("rope.scaling", "rope_freqs.weight"),
    ),
    "other factors": (
        "llama-plain", lambda w: w.add_tensor("rope_freqs.weight", np.ones(3, np.float32)),
        ("rope_freqs.weight", "(3,)", 4),
    ),
    "a tensor": (
        "qwen2-plain", lambda w: w.add_tensor("blk.0.attn_q_norm.weight", np.ones(4, np.float32)),
        ("blk.0.attn_q_norm.weight",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_gguf_file_that_cannot_be_computed_is_refused(what: str, tmp_path: Path):
    case, edit, named = REFUSED[what]
    ggufs.write(tmp_path / "a.gguf", golden(case), edit)
    with raises(ValueError, tmp_path / "a.gguf", *named):
        load(tmp_path / "a.gguf")


HARMLESS = {
    "a quantiser's": lambda w: w.add_string("mradermacher.quantized_by", "somebody"),
    "a layout": lambda w: w.add_tensor_data_layout("Meta AI original pth"),
    "causal": lambda w: w.add_causal_attention(True),
    "no factor": lambda w: w.add_rope_scaling_attn_factors(1.0),
    "plain factors": lambda w: w.add_tensor("rope_freqs.weight", np.ones(2, np.float32)),
    "no experts": lambda w: w.add_expert_count(0),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_fields_and_tensors_that_change_nothing_are_accepted(what: str, tmp_path: Path):
    ggufs.write(tmp_path / "plain.gguf", golden("llama-plain"))
    ggufs.write(tmp_path / "more.gguf", golden("llama-plain"), HARMLESS[what])
    params, config, _ = load(tmp_path / "more.gguf")
    expected, plain, _ = load(tmp_path / "plain.gguf")
    assert config == plain
    same(params, expected)


def drop(key: str, *instead: Any) -> ggufs.Edit:
    """Leave out a field, or give it another value."""

    def edit(writer: gguf.GGUFWriter) -> None:
        for held in writer.kv_data:
            for name in [name for name in held if name.endswith(f".{key}")]:
                del held[name]
        for value in instead:
            kind = "array" if isinstance(value, list) else "string"
            getattr(writer, f"add_{kind}")(f"llama.{key}", value)

    return edit


@pytest.mark.parametrize(
    ("case", "key"),
    [
        ("gpt2-plain", "attention.head_count"), ("gpt2-plain", "attention.layer_norm_epsilon"),
        ("gpt2-plain", "feed_forward_length"), ("llama-plain", "block_count"), ("llama-plain", "embedding_length"),
        ("llama-plain", "attention.head_count"), ("llama-plain", "attention.layer_norm_rms_epsilon"),
    ],
)  # fmt: skip
def test_a_file_without_a_required_field_is_refused(case: str, key: str, tmp_path: Path):
    ggufs.write(tmp_path / "a.gguf", golden(case), drop(key))
    with raises(ValueError, tmp_path / "a.gguf", f"{CASES[case][0]}.{key}"):
        load(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    "key", ["attention.head_count_kv", "rope.freq_base", "attention.key_length", "vocab_size"]
)
def test_an_optional_field_has_llama_cpp_s_default(key: str, tmp_path: Path):
    record = golden("llama-no_groups")
    ggufs.write(tmp_path / "a.gguf", record, drop(key))
    record.write(tmp_path / "folder")
    assert load_config(tmp_path / "a.gguf") == load_config(tmp_path / "folder")


@pytest.mark.parametrize(
    ("case", "edit", "expected"),
    [
        ("llama-plain", lambda w: w.add_rope_scaling_factor(4.0), {"rotary.scaling": "linear", "rotary.factor": 4.0}),
        ("llama-plain", drop("attention.head_count_kv", [2, 2, 2]), {"n_kv_heads": 2}),
        ("gemma3_text-plain", drop("attention.sliding_window"), {"window": None}),
        ("gemma3_text-plain", lambda w: w.add_sliding_window_pattern([True, False, True]), {"window_pattern": "LG"}),
        ("gemma3_text-plain", lambda w: w.add_sliding_window_pattern(2), {"window_pattern": "LG"}),
        ("gemma3_text-plain", lambda w: w.add_float32("gemma3.rope.freq_base_swa", 77.0), {"rotary.local_base": 77.0}),
    ],
)  # fmt: skip
def test_fields_without_a_counterpart_in_transformers_are_converted(
    case: str, edit: ggufs.Edit, expected: dict, tmp_path: Path
):
    ggufs.write(tmp_path / "a.gguf", golden(case), edit)
    config = load(tmp_path / "a.gguf").config
    assert {name: flat_fields(config)[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("key", "value"), [("embedding_length", "16"), ("rope.freq_base", "much"), ("attention.key_length", "4")]
)  # fmt: skip
def test_an_error_about_a_value_names_the_field_as_the_file_does(
    key: str, value: str, tmp_path: Path
):
    ggufs.write(tmp_path / "a.gguf", golden("llama-plain"), drop(key, value))
    with raises(ValueError, tmp_path / "a.gguf", f"llama.{key}='{value}'"):
        load(tmp_path / "a.gguf")


def test_an_unknown_architecture_is_refused(tmp_path: Path):
    for name in ("bert", "qwen2moe"):
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with raises(ValueError, tmp_path / "a.gguf", f"general.architecture='{name}'", "llama"):
            load(tmp_path / "a.gguf")


def test_every_gguf_architecture_is_tested():
    assert set(DIALECTS) == {gguf.MODEL_ARCH_NAMES[a] for a in ggufs.ARCHITECTURES.values()}
    assert {CASES[case][0] for case in KEPT} == ggufs.ARCHITECTURES.keys()
