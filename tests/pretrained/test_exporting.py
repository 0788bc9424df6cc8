"""`export` leaves the old model, the new one or none, never a mixture of two."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from jaxformer import Bytes, Config, export, forward, load, load_config, save
from jaxformer.pretrained.tokenizers.folder import FILES
from jaxformer.text.subwords import Subwords, bpe, byte_level
from tests.helpers.crashes import crashes
from tests.helpers.errors import check_names, raises
from tests.helpers.families import ONE_EACH, golden
from tests.helpers.models import SEED, random_params, same

CONFIG = Config(
    n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=6, n_vocab=5, position="rotary", norm="rms",
    activation="silu", gated=True,
)  # fmt: skip
STALE = (
    "model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "pytorch_model-00002-of-00002.bin",
    ".model.safetensors.123.partial", ".config.json.7.partial", ".tokenizer.json.7.partial",
)  # fmt: skip
OTHERS = (
    "README.md", "model-mine.safetensors", "tokenizer.txt", ".thesis.partial", "notes.json",
    ".model.safetensors.partial",
)  # fmt: skip


def words(letters: str) -> Subwords:
    pytest.importorskip("tokenizers")
    return Subwords(bpe({letter: i for i, letter in enumerate(letters)}, [], (), **byte_level()))


def test_the_safetensors_library_reads_exported_weights(tmp_path: Path):
    params = random_params(CONFIG, dtype=jnp.bfloat16)
    export(tmp_path, params, CONFIG, None, "llama")
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("model.embed_tokens.weight"), params.W_E)
    same(load(tmp_path).params, params)
    size = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert size % 8 == 0  # the tensors are aligned


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file permissions")
def test_files_have_the_default_permissions(tmp_path: Path):
    (tmp_path / "plain").touch()
    export(tmp_path, random_params(CONFIG), CONFIG, words("abc"), "llama")
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_folder_with_a_jaxformer_checkpoint_is_refused(tmp_path: Path):
    save(tmp_path, random_params(SEED), SEED)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with raises(ValueError, tmp_path, "model.json"):
        export(tmp_path, random_params(CONFIG), CONFIG, None, "llama")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_mixed_and_unsupported_dtypes_are_refused(tmp_path: Path):
    params = random_params(CONFIG)
    mixed = params._replace(W_E=params.W_E.astype(jnp.bfloat16))
    with raises(ValueError, "W_E", "bfloat16", "float32"):
        export(tmp_path / "out", mixed, CONFIG, None, "llama")
    narrow = jax.tree.map(lambda array: array.astype(jnp.float8_e5m2), params)
    with raises(ValueError, "W_E", "float8_e5m2", "float16"):
        export(tmp_path / "out", narrow, CONFIG, None, "llama")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tokenizer", [True, False])
def test_files_of_an_older_model_are_deleted_and_other_files_kept(tokenizer: bool, tmp_path: Path):
    for name in (*STALE, *FILES, *OTHERS, "model.safetensors", "config.json"):
        (tmp_path / name).write_text("old")
    params = random_params(CONFIG)
    export(tmp_path, params, CONFIG, words("abc") if tokenizer else None, "llama")
    written = {"model.safetensors", "config.json"} | (set(FILES[:2]) if tokenizer else set())
    assert {path.name for path in tmp_path.iterdir()} == written | set(OTHERS)
    loaded, config, read = load(tmp_path)
    assert config == CONFIG
    same(loaded, params)
    assert (read is not None) == tokenizer


def test_a_tokenizer_that_cannot_be_exported_leaves_the_old_model(tmp_path: Path):
    params = random_params(CONFIG)
    export(tmp_path, params, CONFIG, words("abc"), "llama")
    wide = replace(CONFIG, n_vocab=256)
    with raises(ValueError, "Bytes", "tokenizer.json", "None"):
        export(tmp_path, random_params(wide), wide, Bytes(), "llama")
    loaded, config, tokenizer = load(tmp_path)
    assert config == CONFIG
    same(loaded, params)
    assert tokenizer is not None


@pytest.mark.parametrize("moment", range(14))
@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_a_crash_at_any_moment_leaves_the_old_the_new_or_no_model(
    tmp_path: Path, call: str, moment: int
):
    other = replace(CONFIG, bias="qkv")
    old, new = random_params(CONFIG, 0), random_params(other, 1)
    export(tmp_path, old, CONFIG, words("abc"), "llama")
    (tmp_path / "added_tokens.json").write_text('{"d": 3}')
    crashed = crashes(call, moment, lambda: export(tmp_path, new, other, words("cba"), "qwen2"))
    try:
        params, config, tokenizer = load(tmp_path)
    except FileNotFoundError as error:
        assert crashed
        check_names(str(error), tmp_path, "config.json")
    else:
        assert crashed or config == other
        same(params, old if config == CONFIG else new)
        assert tokenizer is not None
        assert tokenizer.encode("c").tolist() == ([2] if config == CONFIG else [0])
    export(tmp_path, old, CONFIG, None, "llama")  # the next export deletes stray files
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_full_disk_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = random_params(CONFIG)
    export(tmp_path, old, CONFIG, words("abc"), "llama")

    def full(*args: object) -> np.ndarray:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("jaxformer.pretrained.exporting.to_theirs", full)
        with raises(OSError, 28):
            export(tmp_path, random_params(CONFIG, 1), CONFIG, None, "llama")
    same(load(tmp_path).params, old)
    assert load(tmp_path).tokenizer is not None
    assert not list(tmp_path.glob(".*"))


@pytest.mark.peers
@pytest.mark.parametrize("case", ONE_EACH)
def test_an_exported_config_has_no_default_token_ids(case: str, tmp_path: Path):
    golden(case).write(tmp_path / "in")
    params, config, _ = load(tmp_path / "in")
    export(tmp_path / "out", params, config, None, golden(case).config["model_type"])
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [written.get(name, "absent") for name in ids] == [None] * 3
    assert load_config(tmp_path / "out") == config
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert [getattr(theirs, name) for name in ids] == [None] * 3


def test_a_tokenizer_with_more_entries_than_embeddings_is_exported_and_saved(tmp_path: Path):
    params, many = random_params(CONFIG), words("abcdefg")
    export(tmp_path / "exported", params, CONFIG, many, "llama")
    save(tmp_path / "saved", params, CONFIG, many)
    for folder in ("exported", "saved"):
        loaded, config, tokenizer = load(tmp_path / folder)
        assert tokenizer is not None
        assert (config.n_vocab, tokenizer.n_vocab) == (5, 7)
        forward(loaded, config, jnp.asarray(tokenizer.encode("abcde")))
        with raises(ValueError, 6):
            forward(loaded, config, jnp.asarray(tokenizer.encode("abg")))
