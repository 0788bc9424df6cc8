"""Every family agrees with stored results of transformers: logits, gradients, greedy tokens, and exported files."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Config, Sampling, export, forward, generate, load
from jaxformer.pretrained.exporting import foreign_tensors
from jaxformer.pretrained.families import FAMILIES
from tests.helpers.errors import raises
from tests.helpers.families import (
    CASES,
    ONE_EACH,
    TOKENS,
    close,
    golden,
    logits_and_gradient,
    spots,
)
from tests.helpers.models import changed, random_params, same


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.mark.slow(unless=(
    "gpt2-unscaled", "gpt_neox-all_rotary", "llama-llama3", "qwen3-bias", "gemma2-low_caps", "olmo2-plain",
))  # fmt: skip
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_transformers_in_float64(case: str, folder: Path, x64):
    record = golden(case)
    record.write(folder)
    params, config, _ = load(folder, dtype="float64")
    loss, logits, gradient = logits_and_gradient(params, config)
    close(logits, record.logits, 1e-10)
    close(loss, record.loss, 1e-10)
    theirs = foreign_tensors(FAMILIES[CASES[case][0]], gradient, config)
    assert theirs.keys() == record.gradients.keys()
    for name, expected in record.gradients.items():
        close(spots(theirs[name]), expected, 1e-10)


@pytest.mark.slow(unless=("gpt2-plain",))
@pytest.mark.parametrize("case", ONE_EACH)
def test_logits_and_greedy_tokens_equal_transformers_in_float32(case: str, folder: Path):
    record = golden(case)
    record.write(folder)
    params, config, tokenizer = load(folder)
    assert tokenizer is None
    assert params.W_E.dtype == jnp.float32
    close(jax.jit(forward)(params, config, jnp.asarray(TOKENS)).logits, record.logits, 1e-5)
    out = generate(params, config, TOKENS, 8, jax.random.key(0), sampling=Sampling(temperature=0.0))
    np.testing.assert_array_equal(out.tokens, record.greedy)


@pytest.mark.parametrize("case", CASES)
def test_export_and_load_return_the_model_bit_for_bit(case: str, folder: Path, tmp_path: Path):
    record = golden(case)
    record.write(folder)
    params, config, _ = load(folder)
    export(tmp_path / "again", params, config, None, CASES[case][0])
    loaded, again, _ = load(tmp_path / "again")
    assert again == config
    same(loaded, params)
    tensors = foreign_tensors(FAMILIES[CASES[case][0]], params, config)
    assert tensors.keys() == record.tensors.keys()
    for name, tensor in record.tensors.items():
        np.testing.assert_array_equal(tensors[name], tensor)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("case", ONE_EACH)
def test_export_and_load_keep_any_dtype(case: str, dtype: str, folder: Path, tmp_path: Path):
    golden(case).write(folder)
    family, architecture, _ = CASES[case]
    with jax.enable_x64(dtype == "float64"):
        params, config, _ = load(folder, dtype=dtype)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
        export(tmp_path / "again", params, config, None, family)
        same(load(tmp_path / "again").params, params)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["architectures"] == [architecture]
    assert (written["model_type"], written["dtype"]) == (family, dtype)


def renamed(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def also(name: str, tensor: np.ndarray):
    return lambda tensors: tensors | {name: tensor}


def without(name: str):
    return lambda tensors: {own: tensor for own, tensor in tensors.items() if own != name}


HARMLESS = {
    "no prefix": ("gpt2-plain", renamed(lambda name: name.removeprefix("transformer."))),
    "old masks": ("gpt2-plain", also("transformer.h.0.attn.bias", np.ones((1, 1, 4, 4), np.uint8))),
    "older masks": ("gpt2-plain", also("h.1.attn.masked_bias", np.array(-1e4, np.float32))),
    "frequencies": ("llama-plain", also("model.layers.0.self_attn.rotary_emb.inv_freq", np.ones(2, np.float32))),
    "neox masks": ("gpt_neox-plain", also("gpt_neox.layers.0.attention.bias", np.ones((1, 1, 4, 4), bool))),
    "a tied head": ("gpt2-plain", lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].copy()}),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS)
def test_buffers_prefixes_and_tied_heads_of_old_files_change_nothing(
    what: str, folder: Path, tmp_path: Path
):
    case, change = HARMLESS[what]
    record = golden(case)
    record.write(tmp_path / "plain")
    record._replace(tensors=change(record.tensors)).write(folder)
    same(load(folder).params, load(tmp_path / "plain").params)


DAMAGED = {
    "missing": ("llama-plain", without("model.norm.weight"), ("model.norm.weight", "(16,)")),
    "missing head": ("llama-plain", without("lm_head.weight"), ("lm_head.weight", "(24, 16)")),
    "extra": (
        "llama-plain", also("model.layers.3.mlp.up_proj.weight", np.ones((20, 16), np.float32)),
        ("model.safetensors", "model.layers.3.mlp.up_proj.weight", "llama"),
    ),
    "extra bias": (
        "llama-plain", also("model.layers.0.self_attn.q_proj.bias", np.ones(16, np.float32)),
        ("model.layers.0.self_attn.q_proj.bias",),
    ),
    "a shape": (
        "llama-plain", also("model.norm.weight", np.ones(17, np.float32)), ("model.norm.weight", "(17,)", "(16,)"),
    ),
    "no float": (
        "llama-plain", also("model.norm.weight", np.ones(16, np.int32)), ("model.norm.weight", "float16"),
    ),
    "twice": (
        "gpt2-plain", also("wte.weight", np.ones((24, 16), np.float32)), ("wte.weight", "transformer.wte.weight"),
    ),
    "another head": (
        "gpt2-plain", also("lm_head.weight", np.ones((24, 16), np.float32)),
        ("lm_head.weight", "transformer.wte.weight"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_tensors_that_do_not_fit_the_config_are_refused(what: str, folder: Path):
    case, change, named = DAMAGED[what]
    record = golden(case)
    record._replace(tensors=change(record.tensors)).write(folder)
    with raises(ValueError, folder, *named):
        load(folder)


def test_numbers_that_overflow_the_dtype_are_refused(folder: Path):
    record = golden("llama-plain")
    large = record.tensors["model.norm.weight"] * np.float32(1e6)
    record._replace(tensors=record.tensors | {"model.norm.weight": large}).write(folder)
    with raises(ValueError, folder, "model.norm.weight", "float16"):
        load(folder, dtype="float16")
    assert load(folder, dtype="bfloat16").params.W_E.dtype == jnp.bfloat16


CANNOT = {
    "gpt2": ({"norm": "rms"}, "norm='rms'"),
    "gpt_neo": ({"attention_scale": None}, "attention_scale=None"),
    "gpt_neox": ({"bias": "qkv"}, "bias='qkv'"),
    "llama": ({"window": 3}, "window=3"),
    "mistral": ({"window": 3, "window_pattern": "LG"}, "window_pattern='LG'"),
    "qwen2": ({"bias": "all"}, "bias='all'"),
    "qwen3": ({"qk_norm": "none"}, "qk_norm='none'"),
    "gemma2": ({"embedding_scale": 1.0}, "embedding_scale=1.0"),
    "gemma3_text": ({"attention_soft_cap": 3.0}, "attn_logit_softcapping=3.0"),
    "olmo2": ({"norm_place": "before"}, "norm_place='before'"),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_EACH)
def test_a_config_that_a_family_cannot_express_is_not_exported(
    case: str, folder: Path, tmp_path: Path
):
    family = CASES[case][0]
    change, named = CANNOT[family]
    golden(case).write(folder)
    config = changed(load(folder).config, change)
    with raises(ValueError, family, named):
        export(tmp_path / "out", random_params(config), config, None, family)
    assert not (tmp_path / "out").exists()


def test_configs_that_describe_the_same_model_are_exported_alike(tmp_path: Path):
    """n_kv_heads equal to n_heads, a window in no layer, a repeated pattern, the default scale written out."""
    plain = Config(
        n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=6, n_vocab=5, position="rotary", norm="rms",
        activation="silu", gated=True, bias="qkv", window=3, window_pattern="GL",
    )  # fmt: skip
    for change, expected in (
        ({}, plain),
        ({"n_kv_heads": 2, "attention_scale": 0.5, "window_pattern": "GLGL"}, plain),
        ({"window_pattern": "G"}, dataclasses.replace(plain, window=None, window_pattern="L")),
    ):
        given = changed(plain, change)
        params = random_params(given)
        export(tmp_path, params, given, None, "qwen2")
        loaded, config, _ = load(tmp_path)
        assert config == expected
        same(loaded, params)
