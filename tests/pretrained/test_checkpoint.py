"""Checkpoints: `load` returns what was saved, and a crash or damage never leaves another model."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jaxformer import Bytes, Characters, load, save
from jaxformer.config import Config
from jaxformer.config_checks import flat_fields
from tests.helpers.crashes import crashes
from tests.helpers.damage import damaged, write
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.models import (
    CLASSIC,
    LATE,
    MODERN,
    NAMED,
    SEED,
    THREE,
    WINDOWED,
    random_params,
    same,
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", [*THREE, "olmo"])
def test_load_returns_what_was_saved_bit_for_bit(tmp_path: Path, name: str, dtype):
    params = random_params(NAMED[name], dtype=dtype)
    save(tmp_path / "a" / "model", params, NAMED[name], Characters.of("abc"))
    loaded, config, tokenizer = load(tmp_path / "a" / "model")
    assert config == NAMED[name]
    assert tokenizer is not None
    assert tokenizer.decode(np.array([2, 0])) == "ca"
    assert loaded.W_E.dtype == dtype
    same(loaded, params)


def test_a_checkpoint_without_the_later_config_fields_is_loaded(tmp_path: Path):
    params = random_params(WINDOWED)
    save(tmp_path, params, WINDOWED)
    path = tmp_path / "model.json"
    model = json.loads(path.read_text(encoding="utf-8"))
    model["config"] = flat_fields(Config.from_dict(model["config"]))
    for late in LATE:
        del model["config"][late]
    path.write_text(json.dumps(model), encoding="utf-8")
    loaded, config, _ = load(tmp_path)
    assert config == WINDOWED
    same(loaded, params)


def test_float64_needs_64_bit_jax(tmp_path: Path):
    with jax.enable_x64(True):
        save(tmp_path, random_params(SEED, dtype=jnp.float64), SEED)
        assert load(tmp_path).params.W_E.dtype == jnp.float64
    with raises(ValueError, tmp_path, "W_E", "float64", "jax_enable_x64"):
        load(tmp_path)


@pytest.mark.parametrize("moment", range(8))
@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_a_crash_at_any_moment_leaves_the_old_or_the_new_model(
    tmp_path: Path, call: str, moment: int
):
    old, new = random_params(SEED, 0), random_params(MODERN, 1)
    save(tmp_path, old, SEED, Characters.of("abc"))
    crashed = crashes(call, moment, lambda: save(tmp_path, new, MODERN, Characters.of("abc")))
    params, config, _ = load(tmp_path)
    assert crashed or config == MODERN
    same(params, old if config == SEED else new)
    save(tmp_path, random_params(CLASSIC), CLASSIC)  # the next save deletes stray files
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_a_full_disk_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, random_params(SEED), SEED)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with raises(OSError, 28):
            save(tmp_path, random_params(MODERN), MODERN)
    assert load(tmp_path).config == SEED
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("saved")
    save(folder, random_params(SEED), SEED, Characters.of("abcdefghijk"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(data=st.data())
@examples(50)
def test_a_damaged_file_is_refused_or_loads_the_right_model(saved, tmp_path: Path, data):
    name = data.draw(st.sampled_from(sorted(saved)))
    write(tmp_path, saved | {name: data.draw(damaged(saved[name]))})
    try:
        params, config, _ = load(tmp_path)
    except TypeCheckError:  # the tests' type checks refuse a value before Config does
        assert name == "model.json"
    except (ValueError, FileNotFoundError) as error:
        assert str(tmp_path) in str(error)
    else:  # a changed byte in the JSON can give another valid Config or alphabet
        assert name == "model.json"
        assert params.W_E.shape == (config.n_vocab, config.d_model)
        same(params, random_params(SEED))


def edit_json(folder: Path, change) -> None:
    path = folder / "model.json"
    model = json.loads(path.read_text())
    change(model)
    path.write_text(json.dumps(model))


FOREIGN = {
    "another format": (lambda m: m.update(format="other"), ("format", "jaxformer-1")),
    "no config": (lambda m: m.pop("config"), ("'config'",)),
    "unknown field": (lambda m: m["config"].update(n_experts=8), ("'n_experts'",)),
    "wrong config": (lambda m: m["config"].update(d_mlp=13), ("W_in", (2, 8, 12), (2, 8, 13))),
    "missing array": (lambda m: m["config"].update(gated=True), ("blocks.mlp.W_gate",)),
    "extra array": (lambda m: m["config"].update(tied=True), ("W_U",)),
    "lost file": (lambda m: m["parameters"].update(file="params-0.safetensors"), ("params-0.safetensors",)),
    "a path": (lambda m: m["parameters"].update(file="../../etc/passwd"), ("passwd",)),
}  # fmt: skip


@pytest.mark.parametrize("what", FOREIGN)
def test_a_changed_model_json_is_refused(tmp_path: Path, what: str):
    change, named = FOREIGN[what]
    save(tmp_path, random_params(SEED), SEED)
    edit_json(tmp_path, change)
    with raises(ValueError, tmp_path, *named):
        load(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with raises(FileNotFoundError, tmp_path, "model.json"):
        load(tmp_path)


def test_a_folder_that_cannot_be_created_is_an_oserror(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        save(tmp_path / "file" / "model", random_params(SEED), SEED)


def test_parameters_or_tokenizers_of_another_config_are_not_saved(tmp_path: Path):
    save(tmp_path, random_params(SEED), SEED)
    with raises(ValueError, "blocks.attn_norm.w", (2, 8)):
        save(tmp_path, random_params(SEED), MODERN)
    with raises(ValueError, 256, "n_vocab=11"):
        save(tmp_path, random_params(SEED), SEED, Bytes())
    same(load(tmp_path).params, random_params(SEED))


def test_other_files_in_the_folder_are_kept(tmp_path: Path):
    for name in ("params-mine.safetensors", ".thesis.partial"):
        (tmp_path / name).write_text("years of work")
    save(tmp_path, random_params(SEED), SEED)
    save(tmp_path, random_params(SEED, 1), SEED)
    assert (tmp_path / "params-mine.safetensors").exists()
    assert (tmp_path / ".thesis.partial").exists()
    assert len(list(tmp_path.iterdir())) == 4
