"""A model on disk: the old one or the new one, never half, never another."""

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
def test_load_gives_back_what_was_saved_bit_for_bit(tmp_path: Path, name: str, dtype):
    params = random_params(NAMED[name], dtype=dtype)
    save(tmp_path / "a" / "model", NAMED[name], params, Characters.of("abc"))
    config, loaded, tokenizer = load(tmp_path / "a" / "model")
    assert config == NAMED[name]
    assert tokenizer is not None
    assert tokenizer.decode(np.array([2, 0])) == "ca"
    assert loaded.W_E.dtype == dtype
    same(loaded, params)


def test_a_folder_from_before_a_choice_was_there_is_loaded_without_it(tmp_path: Path):
    params = random_params(WINDOWED)
    save(tmp_path, WINDOWED, params)
    path = tmp_path / "model.json"
    model = json.loads(path.read_text(encoding="utf-8"))
    for late in LATE:
        del model["config"][late]
    path.write_text(json.dumps(model), encoding="utf-8")
    config, loaded, _ = load(tmp_path)
    assert config == WINDOWED
    same(loaded, params)


def test_float64_needs_64_bit_jax(tmp_path: Path):
    with jax.enable_x64(True):
        save(tmp_path, SEED, random_params(SEED, dtype=jnp.float64))
        assert load(tmp_path)[1].W_E.dtype == jnp.float64
    with raises(ValueError, tmp_path, "W_E", "float64", "jax_enable_x64"):
        load(tmp_path)


@pytest.mark.parametrize("moment", range(8))
@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_a_crash_at_any_moment_leaves_the_old_or_the_new_model(
    tmp_path: Path, call: str, moment: int
):
    old, new = random_params(SEED, 0), random_params(MODERN, 1)
    save(tmp_path, SEED, old, Characters.of("abc"))
    crashed = crashes(call, moment, lambda: save(tmp_path, MODERN, new, Characters.of("abc")))
    config, params, _ = load(tmp_path)
    assert crashed or config == MODERN
    same(params, old if config == SEED else new)
    save(tmp_path, CLASSIC, random_params(CLASSIC))  # and the next save clears what was left
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_a_full_disk_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, SEED, random_params(SEED))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with raises(OSError, 28):
            save(tmp_path, MODERN, random_params(MODERN))
    assert load(tmp_path)[0] == SEED
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("saved")
    save(folder, SEED, random_params(SEED), Characters.of("abcdefghijk"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(data=st.data())
@examples(50)
def test_a_damaged_file_is_a_clear_error_or_the_right_model(saved, tmp_path: Path, data):
    name = data.draw(st.sampled_from(sorted(saved)))
    write(tmp_path, saved | {name: data.draw(damaged(saved[name]))})
    try:
        config, params, _ = load(tmp_path)
    except TypeCheckError:  # the tests' own type checks spoke before Config's: refused as well
        assert name == "model.json"
    except (ValueError, FileNotFoundError) as error:
        assert str(tmp_path) in str(error)
    else:  # a flip inside the JSON can leave another valid Config or alphabet
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
def test_a_foreign_model_is_a_clear_error(tmp_path: Path, what: str):
    change, named = FOREIGN[what]
    save(tmp_path, SEED, random_params(SEED))
    edit_json(tmp_path, change)
    with raises(ValueError, tmp_path, *named):
        load(tmp_path)


def test_a_folder_without_a_model_is_a_clear_error(tmp_path: Path):
    with raises(FileNotFoundError, tmp_path, "model.json"):
        load(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_oserror(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        save(tmp_path / "file" / "model", SEED, random_params(SEED))


def test_parts_of_two_models_are_not_saved_over_a_good_one(tmp_path: Path):
    save(tmp_path, SEED, random_params(SEED))
    with raises(ValueError, "blocks.attn_norm.w", (2, 8)):
        save(tmp_path, MODERN, random_params(SEED))
    with raises(ValueError, 256, "n_vocab=11"):
        save(tmp_path, SEED, random_params(SEED), Bytes())
    same(load(tmp_path)[1], random_params(SEED))


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path):
    for name in ("params-mine.safetensors", ".thesis.partial"):
        (tmp_path / name).write_text("years of work")
    save(tmp_path, SEED, random_params(SEED))
    save(tmp_path, SEED, random_params(SEED, 1))
    assert (tmp_path / "params-mine.safetensors").exists()
    assert (tmp_path / ".thesis.partial").exists()
    assert len(list(tmp_path.iterdir())) == 4
