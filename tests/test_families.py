"""Every family against what transformers computed: logits, gradients, greedy tokens; and back into its files."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Config, Sampling, export, forward, generate, load, load_config
from jaxformer.families import FAMILIES
from jaxformer.families.export import foreign_tensors
from tests.families import CASES, TOKENS, Golden, golden, spots
from tests.hub_configs import CONFIGS
from tests.models import random_params

ONE_EACH = [next(case for case, (own, _, _) in CASES.items() if own == f) for f in FAMILIES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def logits_and_gradient(params, config: Config):
    tokens = jnp.asarray(TOKENS)

    def loss(params):
        logits = forward(params, config, tokens).logits
        return -jax.nn.log_softmax(logits[:-1])[
            jnp.arange(len(TOKENS) - 1), tokens[1:]
        ].mean(), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, logits, gradient


def close(found, expected, tolerance: float) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers_in_float64(case: str, folder: Path, x64):
    record = golden(case)
    record.write(folder)
    config, params, _ = load(folder, dtype="float64")
    loss, logits, gradient = logits_and_gradient(params, config)
    close(logits, record.logits, 1e-10)
    close(loss, record.loss, 1e-10)
    theirs = foreign_tensors(FAMILIES[CASES[case][0]], config, gradient)
    assert theirs.keys() == record.gradients.keys()
    for name, expected in record.gradients.items():
        close(spots(theirs[name]), expected, 1e-10)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_are_those_of_transformers_in_float32(case: str, folder: Path):
    record = golden(case)
    record.write(folder)
    config, params, tokenizer = load(folder)
    assert tokenizer is None
    assert params.W_E.dtype == jnp.float32
    close(jax.jit(forward)(params, config, jnp.asarray(TOKENS)).logits, record.logits, 1e-5)
    out = generate(params, config, TOKENS, 8, jax.random.key(0), sampling=Sampling(temperature=0.0))
    np.testing.assert_array_equal(out.tokens, record.greedy)


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_is_what_was_loaded_bit_for_bit(case: str, folder: Path, tmp_path: Path):
    record = golden(case)
    record.write(folder)
    config, params, _ = load(folder)
    export(tmp_path / "again", config, params, None, CASES[case][0])
    again, loaded, _ = load(tmp_path / "again")
    assert again == config
    same(loaded, params)
    tensors = foreign_tensors(FAMILIES[CASES[case][0]], config, params)
    assert tensors.keys() == record.tensors.keys()
    for name, tensor in record.tensors.items():
        np.testing.assert_array_equal(tensors[name], tensor)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("case", ONE_EACH)
def test_a_round_trip_in_any_dtype(case: str, dtype: str, folder: Path, tmp_path: Path):
    golden(case).write(folder)
    with jax.enable_x64(dtype == "float64"):
        config, params, _ = load(folder, dtype=dtype)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
        export(tmp_path / "again", config, params, None, CASES[case][0])
        same(load(tmp_path / "again")[1], params)


def read_config(case: str, change: dict, folder: Path) -> Config:
    record = golden(case)
    record._replace(config=record.config | change).write(folder)
    return load(folder)[0]


OLD: dict[str, tuple[str, dict, list[str]]] = {
    # what transformers 4 wrote in place of rope_parameters
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
def test_configs_as_transformers_4_wrote_them(case: str, folder: Path, tmp_path: Path):
    gone, instead, more = OLD[case]
    record = golden(case)
    record.write(folder)
    old = {k: v for k, v in record.config.items() if k not in (gone, *more)} | instead
    record._replace(config=old).write(tmp_path / "old")
    assert load(tmp_path / "old")[0] == load(folder)[0]


def without_field(record: Golden, name: str) -> Golden:
    return record._replace(config={k: v for k, v in record.config.items() if k != name})


@pytest.mark.parametrize("case", ONE_EACH)
def test_a_field_that_nobody_knows_is_refused_by_name(case: str, folder: Path):
    with pytest.raises(
        ValueError, match="config.json.* has attention_sinks=4; jaxformer does not know"
    ):
        read_config(case, {"attention_sinks": 4}, folder)


NEVER = {
    "add_cross_attention": True, "is_encoder_decoder": True, "quantization_config": {"bits": 4},
    "pruned_heads": {"0": [1]},
}  # fmt: skip


@pytest.mark.parametrize("name", NEVER)
@pytest.mark.parametrize("case", ONE_EACH)
def test_what_no_family_here_computes_is_refused_by_name(case: str, name: str, folder: Path):
    with pytest.raises(ValueError, match=f"has {name}="):
        read_config(case, {name: NEVER[name]}, folder)


REFUSED = {
    "an activation": (
        "llama-plain",
        {"hidden_act": "quick_gelu"},
        "hidden_act='quick_gelu'; known are 'relu'",
    ),
    "a kind": (
        "llama-plain",
        {"hidden_size": "16"},
        "hidden_size='16'; it must be of the kind int",
    ),
    "layers": ("qwen2-plain", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; no"),
    "a null": (
        "llama-plain",
        {"hidden_size": None},
        "hidden_size=None; it must be of the kind int",
    ),
    "no number": ("llama-plain", {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan"),
    "a boolean": (
        "gpt2-plain",
        {"scale_attn_weights": 1},
        "scale_attn_weights=1; it must be of the kind bool",
    ),
    "yarn": (
        "llama-plain",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        "rope_type='yarn'",
    ),
    "two scalings": (
        "llama-linear",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "both rope_scaling and rope_parameters",
    ),
    "an unknown turn": (
        "llama-plain",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "beta_fast": 3}},
        "rope_parameters has beta_fast=3",
    ),
    "part of a head": (
        "llama-plain",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor=0.5",
    ),
    "pairs": (
        "llama-plain",
        {"rope_interleaved": True},
        "rope_interleaved=True, which jaxformer cannot compute",
    ),
    "heads": (
        "llama-plain",
        {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None},
        "hidden_size=16, which is not a multiple of num_attention_heads=5",
    ),
    "gpt2's heads": ("gpt2-plain", {"n_head": 0}, "n_head=0; it must be at least 1"),
    "groups": (
        "llama-plain",
        {"num_key_value_heads": 3},
        "n_heads=4 is not a multiple of n_kv_heads=3",
    ),
    "layer types": (
        "qwen2-types",
        {"layer_types": ["full_attention"]},
        "1 layer_types, and num_hidden_layers=3",
    ),
    "a layer type": (
        "gemma2-plain",
        {"layer_types": ["chunked_attention"] * 3},
        "'chunked_attention' in layer_types",
    ),
    "no window": (
        "gemma2-plain",
        {"sliding_window": None},
        "layers with a window in layer_types, but no window",
    ),
    "neo's layers": (
        "gpt_neo-plain",
        {"attention_types": [[["global"], 2]]},
        "attention_types for 2 layers, and num_layers=3",
    ),
    "neo's form": (
        "gpt_neo-plain",
        {"attention_types": [3]},
        "attention_types=.3.; it must be like",
    ),
    "neo's lists": (
        "gpt_neo-plain",
        {"attention_layers": ["global"] * 3},
        "not those of attention_types",
    ),
    "a cap": ("gemma3_text-plain", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
    "both ways": (
        "gemma2-plain",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention=True",
    ),
    "both ways 3": (
        "gemma3_text-plain",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention=True",
    ),
    "experts": ("llama-plain", {"model_type": "mixtral"}, "a mixtral model, a mixture of experts"),
    "more experts": (
        "llama-plain",
        {"model_type": "qwen3_moe"},
        "a qwen3_moe model, a mixture of experts",
    ),
    "an unknown family": (
        "llama-plain",
        {"model_type": "bert"},
        "model_type='bert'; jaxformer has gpt2, gpt_neo",
    ),
    "no family": ("llama-plain", {"model_type": None}, "model_type=None"),
    "pictures": ("gemma3_text-plain", {"model_type": "gemma3"}, "texts and pictures"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_config_that_cannot_be_computed_is_one_clear_error(what: str, folder: Path):
    case, change, sentence = REFUSED[what]
    with pytest.raises(ValueError, match=sentence) as error:
        read_config(case, change, folder)
    assert str(folder) in str(error.value)


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
def test_what_old_files_hold_besides_changes_nothing(what: str, folder: Path, tmp_path: Path):
    case, change = HARMLESS[what]
    record = golden(case)
    record.write(tmp_path / "plain")
    record._replace(tensors=change(record.tensors)).write(folder)
    same(load(folder)[1], load(tmp_path / "plain")[1])


DAMAGED = {
    "missing": (
        "llama-plain",
        without("model.norm.weight"),
        r"lacks model.norm.weight, of shape \(16,\)",
    ),
    "missing head": (
        "llama-plain",
        without("lm_head.weight"),
        r"lacks lm_head.weight, of shape \(24, 16\)",
    ),
    "extra": (
        "llama-plain",
        also("model.layers.3.mlp.up_proj.weight", np.ones((20, 16), np.float32)),
        "model.safetensors holds model.layers.3.mlp.up_proj.weight, which a llama model",
    ),
    "extra bias": (
        "llama-plain",
        also("model.layers.0.self_attn.q_proj.bias", np.ones(16, np.float32)),
        "holds model.layers.0.self_attn.q_proj.bias",
    ),
    "a shape": (
        "llama-plain",
        also("model.norm.weight", np.ones(17, np.float32)),
        r"model.norm.weight of shape \(17,\); its config asks for \(16,\)",
    ),
    "no float": (
        "llama-plain",
        also("model.norm.weight", np.ones(16, np.int32)),
        "model.norm.weight as int32; jaxformer reads float16",
    ),
    "twice": (
        "gpt2-plain",
        also("wte.weight", np.ones((24, 16), np.float32)),
        "both .*wte.weight and .*wte.weight, which are one tensor",
    ),
    "another head": (
        "gpt2-plain",
        also("lm_head.weight", np.ones((24, 16), np.float32)),
        "lm_head.weight that is not transformer.wte.weight",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_tensors_that_are_not_the_config_s_are_one_clear_error(what: str, folder: Path):
    case, change, sentence = DAMAGED[what]
    record = golden(case)
    record._replace(tensors=change(record.tensors)).write(folder)
    with pytest.raises(ValueError, match=sentence) as error:
        load(folder)
    assert str(folder) in str(error.value)


def test_numbers_that_a_dtype_has_no_room_for_are_refused(folder: Path):
    record = golden("llama-plain")
    large = record.tensors["model.norm.weight"] * np.float32(1e6)
    record._replace(tensors=record.tensors | {"model.norm.weight": large}).write(folder)
    with pytest.raises(
        ValueError, match="model.norm.weight with numbers that float16 has no room for"
    ):
        load(folder, dtype="float16")
    assert load(folder, dtype="bfloat16")[1].W_E.dtype == jnp.bfloat16


CANNOT = {
    "gpt2": ({"norm": "rms"}, "a gpt2 model cannot have norm='rms'"),
    "gpt_neo": ({"attention_scale": None}, "a gpt_neo model cannot have attention_scale=None"),
    "gpt_neox": ({"bias": "qkv"}, "a gpt_neox model cannot have bias='qkv'"),
    "llama": ({"window": 3}, "a llama model cannot have window=3"),
    "mistral": ({"window": 3, "window_pattern": "LG"}, "a mistral model cannot have window_pattern='LG'"),
    "qwen2": ({"bias": "all"}, "a qwen2 model cannot have bias='all'"),
    "qwen3": ({"qk_norm": "none"}, "a qwen3 model cannot have qk_norm='none'"),
    "gemma2": ({"embedding_scale": 1.0}, "a gemma2 model cannot have embedding_scale=1.0"),
    "gemma3_text": ({"attention_cap": 3.0}, "a gemma3_text model cannot be of this Config: .*softcapping=3.0"),
    "olmo2": ({"norm_place": "before"}, "a olmo2 model cannot have norm_place='before'"),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_EACH)
def test_a_config_that_a_family_cannot_have_is_not_exported(
    case: str, folder: Path, tmp_path: Path
):
    family = CASES[case][0]
    change, sentence = CANNOT[family]
    golden(case).write(folder)
    config = dataclasses.replace(load(folder)[0], **change)
    with pytest.raises(ValueError, match=sentence):
        export(tmp_path / "out", config, random_params(config), None, family)
    assert not (tmp_path / "out").exists()


def test_equal_models_of_several_configs_are_exported(tmp_path: Path):
    """A count of key/value heads that is the heads', windows in no layer, a pattern written out, the usual scale."""
    plain = Config(
        n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=6, n_vocab=5, position="rotary", norm="rms",
        activation="silu", gated=True, bias="qkv", window=3, window_pattern="GL",
    )  # fmt: skip
    other = dataclasses.replace(plain, n_kv_heads=2, attention_scale=0.5, window_pattern="GLGL")
    none = dataclasses.replace(plain, window_pattern="G")
    for given, expected in (
        (plain, plain),
        (other, plain),
        (none, dataclasses.replace(none, window=None, window_pattern="L")),
    ):
        params = random_params(given)
        export(tmp_path, given, params, None, "qwen2")
        config, loaded, _ = load(tmp_path)
        assert config == expected
        same(loaded, params)


def test_the_config_that_is_exported_says_which_model_it_is(folder: Path, tmp_path: Path):
    golden("qwen3-plain").write(folder)
    config, params, _ = load(folder, dtype="bfloat16")
    export(tmp_path / "out", config, params, None, "qwen3")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["Qwen3ForCausalLM"]
    assert (written["model_type"], written["dtype"]) == ("qwen3", "bfloat16")


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_of_published_models(name: str, tmp_path: Path):
    fields, expected = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = load_config(tmp_path)
    assert {field: getattr(config, field) for field in expected} == expected


ROTARY_PARTS = [(22, 0.25), (30, 0.25), (100, 0.58), (20, 0.3)]


@pytest.mark.parametrize(("width", "part"), ROTARY_PARTS)
def test_a_part_of_a_head_is_rounded_down_and_must_be_pairs(
    width: int, part: float, tmp_path: Path
):
    fields = CONFIGS["Pythia"][0] | {
        "hidden_size": 2 * width, "num_attention_heads": 2, "rotary_pct": part, "partial_rotary_factor": part,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    turned = int(width * part)
    if turned % 2:
        with pytest.raises(
            ValueError, match=f"turns {turned} of the {width} coordinates of a head"
        ):
            load_config(tmp_path)
    else:
        assert load_config(tmp_path).rotary_width == turned
