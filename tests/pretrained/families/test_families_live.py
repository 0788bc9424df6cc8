"""Every family against the installed transformers: each loads what the other saves, with the same logits."""
# pyright: reportMissingImports=false

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from huggingface_hub.errors import StrictDataclassError
from safetensors.numpy import load_file

from jaxformer import Config, export, forward, load, load_config
from jaxformer.pretrained.exporting import foreign_tensors
from jaxformer.pretrained.families import FAMILIES
from tests.helpers import ggufs, hf
from tests.helpers.families import (
    CASES,
    ONE_EACH,
    TOKENS,
    close,
    golden,
    logits_and_gradient,
    spots,
)
from tests.helpers.models import same

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # transformers' warnings


def their_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        out = model(torch.tensor([TOKENS]), use_cache=False, return_dict=True)
    return out.logits[0].float().numpy()


def our_logits(params: Any, config: Config) -> np.ndarray:
    return np.asarray(forward(params, config, jnp.asarray(TOKENS)).logits, np.float32)


@pytest.mark.parametrize("case", CASES)
def test_the_golden_files_equal_what_transformers_saves_and_computes(case: str, tmp_path: Path):
    record, found = golden(case), hf.answers(case)
    record.write(tmp_path / "golden")
    hf.build(case).save_pretrained(tmp_path / "saved")
    assert load_config(tmp_path / "saved") == load_config(tmp_path / "golden")
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    assert tensors.keys() == record.tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, record.tensors[name])
    close(found["logits"], record.logits, 1e-11)
    close(found["loss"], record.loss, 1e-11)
    np.testing.assert_array_equal(found["greedy"], record.greedy)
    for name, expected in record.gradients.items():
        close(spots(found[f"gradient {name}"]), expected, 1e-10)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_transformers_entry_by_entry(case: str, tmp_path: Path, x64):
    golden(case).write(tmp_path)
    params, config, _ = load(tmp_path, dtype="float64")
    gradient = logits_and_gradient(params, config)[2]
    theirs = foreign_tensors(FAMILIES[CASES[case][0]], gradient, config)
    for name, tensor in theirs.items():
        close(tensor, hf.answers(case)[f"gradient {name}"], 1e-10)


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_an_exported_model_with_the_same_logits(case: str, tmp_path: Path):
    golden(case).write(tmp_path / "in")
    params, config, _ = load(tmp_path / "in")
    export(tmp_path / "out", params, config, None, CASES[case][0])
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == FAMILIES[CASES[case][0]].architecture == CASES[case][1]
    close(their_logits(model.eval()), our_logits(params, config), 1e-5)


@pytest.mark.parametrize("case", ONE_EACH)
def test_shards_and_pickles_load_as_the_same_model(case: str, tmp_path: Path):
    model = hf.build(case)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model.config.save_pretrained(tmp_path / "pickle")
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    params, config, _ = load(tmp_path / "one")
    for other in ("shards", "pickle"):
        loaded, again, _ = load(tmp_path / other)
        assert again == config
        same(loaded, params)


@pytest.mark.parametrize("case", ONE_EACH)
def test_bfloat16_is_as_close_to_float32_as_transformers_is(case: str, tmp_path: Path):
    model = hf.build(case)
    model.save_pretrained(tmp_path)
    exact = their_logits(model)
    theirs = np.abs(their_logits(model.to(torch.bfloat16)) - exact).max()
    params, config, _ = load(tmp_path, dtype="bfloat16")
    assert np.abs(our_logits(params, config) - exact).max() <= 2 * theirs


OTHERS: dict[str, list[Any]] = {
    "activation_function": ["relu", "gelu", "silu", "quick_gelu"],
    "hidden_act": ["relu", "gelu_new", "quick_gelu"],
    "hidden_activation": ["relu", "gelu"],
    "summary_type": ["last"],
    "attention_types": [[[["local"], 3]]],
    "layer_types": [["sliding_attention"] * 3, ["full_attention"] * 3],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 77.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 8},
        {"full_attention": {"rope_type": "default", "rope_theta": 5.0},
         "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
        {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
         "sliding_attention": {"rope_type": "default", "rope_theta": 5.0}},
        {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
         "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ],
}  # fmt: skip
"""Other values for fields that are not numbers or booleans."""


def flips(value: Any, name: str) -> list[Any]:
    if name in OTHERS:
        return [other for other in OTHERS[name] if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value + 3]
    if isinstance(value, float):
        return [value * 1.5 + 0.1]
    return [True, 2, 0.5] if value is None else []


@pytest.mark.parametrize("case", ONE_EACH)
def test_no_field_that_changes_the_logits_is_ignored(case: str, tmp_path: Path):
    """Changing a field is refused, changes the Config, or changes no logit in transformers either."""
    record, model = golden(case), hf.build(case)
    record.write(tmp_path / "plain")
    plain, expected = load(tmp_path / "plain").config, their_logits(model)
    defaults = model.config.__class__().to_dict()
    ignored = []
    for name in sorted(defaults.keys() | record.config.keys()):
        value = record.config.get(name, defaults.get(name))
        for other in flips(value, name):
            record._replace(config=record.config | {name: other}).write(tmp_path / "changed")
            try:
                config = load(tmp_path / "changed").config
            except ValueError as error:
                assert str(tmp_path) in str(error)
                continue
            if config == plain:
                ignored.append((name, other))
    assert ignored, "transformers has fields that change nothing"
    for name, other in ignored:
        if name in ("return_dict", "use_return_dict"):
            continue  # transformers' models fail with these
        try:
            changed = type(model.config).from_dict(record.config | {name: other})
        except (StrictDataclassError, ValueError):
            continue  # transformers refuses this value
        again = type(model)._from_config(changed, attn_implementation="eager")
        again.load_state_dict(model.state_dict())
        np.testing.assert_allclose(
            their_logits(again.eval()), expected, atol=1e-5, err_msg=f"{name}={other}"
        )


@pytest.mark.parametrize(
    "case", ["llama-plain", "llama-head_dim", "mistral-no_window", "qwen2-plain"]
)
def test_transformers_reads_the_same_model_from_the_same_gguf_file(case: str, tmp_path: Path):
    """Only these cases: in the other tiny models transformers ignores the head width or Gemma's scale."""
    ggufs.write(tmp_path / "model.gguf", golden(case))
    params, config, _ = load(tmp_path / "model.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", attn_implementation="eager"
    )
    close(our_logits(params, config), their_logits(theirs.eval()), 1e-5)
