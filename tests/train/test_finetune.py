"""Runs that start from a model: its loss before the first step, its tokenizer, and a model as the result."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Config, Params, Words, export, init, load, perplexity, save, score
from tests.helpers.families import golden
from tests.helpers.runs import (
    Finished,
    assert_same_run,
    check_refused,
    final_state,
    folder_of,
    numbers,
    stop_at,
)
from tests.helpers.tuned import TEXT, foreign, quantised, subwords, text_at, tuning
from train import prepare, sample
from train.__main__ import main, parse
from train.data.batches import cover, held_out_starts
from train.runs import read_about
from train.start import open_recipe

pytestmark = pytest.mark.usefixtures("standard_promotion")
CONTEXT = 12


def own_loss(params: Params, config: Config, windows: Any, counted: Any = ...) -> float:
    """Return the loss of a model on windows, from `score`."""
    each = jax.vmap(lambda row: -score(params, config, row))(jnp.asarray(windows))
    return float(np.asarray(each, np.float64)[counted].mean())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gpt2-plain", "gemma2-plain"])
def test_before_the_first_step_the_loss_is_the_model_s_own(case: str, tmp_path: Path):
    start, text = foreign(tmp_path / "model", case), text_at(tmp_path)
    command = tuning(start, text, tmp_path, "run", "--steps", "10")
    assert main(command) == 0
    params, config, tokenizer = load(start)
    assert tokenizer is not None
    tokens = tokenizer.encode(TEXT)
    held_out = tokens[len(tokens) * 9 // 10 :]
    windows, counted = (part.reshape(-1, part.shape[-1]) for part in cover(held_out, 4, CONTEXT))
    first, *_, last = numbers(folder_of(command))
    assert first["step"] == 0
    loss = own_loss(params, config, windows, counted)
    assert first["validation_loss"] == pytest.approx(loss, rel=1e-5)
    whole = windows[counted.all(axis=1)][:2]
    each = [float(perplexity(params, config, jnp.asarray(window))) for window in whole]
    assert np.log(each).mean() == pytest.approx(own_loss(params, config, whole), rel=1e-5)
    assert last["validation_loss"] < first["validation_loss"]
    about = read_about(folder_of(command) / "run.json")
    assert (
        Config.from_dict(about["recipe"]["config"])
        == config
        == load(folder_of(command) / "model").config
    )


@pytest.mark.slow
def test_a_run_starts_from_the_loss_of_an_earlier_run(finished: Finished, corpus: Path):
    folder = folder_of(finished.command)
    best = min(line.get("validation_loss", np.inf) for line in numbers(folder))
    for start in (folder, folder / "model"):
        further = tuning(start, corpus, corpus.parent, f"further-{start.name}", "--steps", "10")
        assert main(further) == 0
        first, *_ = numbers(folder_of(further))
        assert first["validation_loss"] == pytest.approx(best, rel=1e-6)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path: Path):
    start, text = foreign(tmp_path / "model"), text_at(tmp_path)
    whole, stopped = (tuning(start, text, tmp_path, name, "--seeds", "2") for name in ("a", "b"))
    assert main(whole) == 0
    stop_at(stopped, 2)
    assert numbers(folder_of(stopped))[-1]["step"] < 20
    assert main([*stopped, "--resume"]) == 0
    assert_same_run(whole, stopped)


@pytest.mark.slow
def test_every_member_starts_from_the_same_model(tmp_path: Path):
    start, text = foreign(tmp_path / "model"), text_at(tmp_path)
    command = tuning(start, text, tmp_path, "many", "--seeds", "3")
    assert main(command) == 0
    first, *_, last = numbers(folder_of(command))
    assert len(set(first["validation_losses"])) == 1
    assert len(set(last["validation_losses"])) == 3  # each member draws its own batches
    assert final_state(command).params.W_E.shape == (3, *load(start).params.W_E.shape)


def test_bfloat16_parameters_are_trained_in_float32(tmp_path: Path):
    golden("qwen2-plain").write(tmp_path / "wide")
    params, config, _ = load(tmp_path / "wide", dtype="bfloat16")
    save(tmp_path / "narrow", params, config, subwords())
    recipe = parse(tuning(tmp_path / "narrow", text_at(tmp_path), tmp_path, "x")).recipe
    opened = open_recipe(recipe)
    assert opened.config == config
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, opened.first, wide)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(opened.first)} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_trained_model_is_exported_loaded_and_sampled(family: str, tmp_path: Path, capsys):
    start, text = foreign(tmp_path / "model", f"{family}-plain"), text_at(tmp_path)
    command = tuning(start, text, tmp_path, "run")
    assert main(command) == 0
    assert "the best model" in (folder_of(command) / "samples.txt").read_text()
    params, config, tokenizer = load(folder_of(command) / "model")
    assert tokenizer is not None
    assert tokenizer.to_json() == subwords().to_json()
    export(tmp_path / "exported", params, config, tokenizer, family)
    same, again, spoken = load(tmp_path / "exported")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert spoken is not None
    np.testing.assert_array_equal(spoken.encode(TEXT), subwords().encode(TEXT))
    capsys.readouterr()
    said = []
    for place in (folder_of(command), folder_of(command) / "model", tmp_path / "exported"):
        assert sample.main([str(place), "--prompt", "the cat", "--n", "30", "--context", "12"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]
    assert said[0].startswith("the cat")


def prepared(room: Path, tokenizer: str, name: str = "text.tokens") -> Path:
    """Write the token file of the text."""
    out = room / name
    assert prepare.main([str(text_at(room)), "--tokenizer", tokenizer, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_a_token_file_of_the_model_s_tokenizer(tmp_path: Path):
    start = foreign(tmp_path / "model")
    file = prepared(tmp_path, str(start))
    command = tuning(start, file, tmp_path, "run", "--steps", "10")
    assert main(command) == 0
    params, config, tokenizer = load(start)
    assert tokenizer is not None
    tokens = tokenizer.encode(TEXT)
    windows = tokens[held_out_starts(len(tokens), CONTEXT)[:, None] + np.arange(CONTEXT + 1)]
    loss = numbers(folder_of(command))[0]["validation_loss"]
    assert loss == pytest.approx(own_loss(params, config, windows), rel=1e-5)


def test_a_token_file_of_another_vocabulary_is_refused(tmp_path: Path, capsys):
    start = foreign(tmp_path / "model")
    file = prepared(tmp_path, "characters")
    command = tuning(start, file, tmp_path, "x")
    check_refused(capsys, command, file, start, "train.prepare", "--tokenizer")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_model_without_a_tokenizer_reads_only_tokens(tmp_path: Path, capsys):
    start = quantised(tmp_path / "model.gguf")
    text = text_at(tmp_path)
    check_refused(capsys, tuning(start, text, tmp_path, "x"), start, text, "train.prepare")
    fits = tuning(start, prepared(tmp_path, str(foreign(tmp_path / "other"))), tmp_path, "fits")
    assert main(fits) == 0
    _, config, tokenizer = load(folder_of(fits) / "model")
    assert tokenizer is not None
    assert tokenizer.to_json() == subwords().to_json()
    assert config == load(start).config
    capsys.readouterr()
    wide = prepared(tmp_path, "bytes", "wide.tokens")
    check_refused(capsys, tuning(start, wide, tmp_path, "x"), wide, 256, start, 24)


@pytest.mark.slow
def test_words_are_not_cut_in_two(tmp_path: Path):
    words = Words.of(TEXT)
    config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, n_vocab=words.n_vocab)
    save(tmp_path / "model", init(config, jax.random.key(0)), config, words)
    assert main(tuning(tmp_path / "model", text_at(tmp_path), tmp_path, "words")) == 0


@pytest.mark.slow
def test_the_position_table_of_the_preset_is_ignored(tmp_path: Path):
    command = tuning(foreign(tmp_path / "model"), text_at(tmp_path), tmp_path, "long")
    command = ["nanogpt-cpu", *command[1:], "--context", "70", "--steps", "5"]
    assert parse(command).config.n_context == 64
    assert main(command) == 0


@pytest.mark.slow
def test_a_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    fetched, text = foreign(tmp_path / "cache"), text_at(tmp_path)
    requested: list[str] = []

    def download(name: str, **options: object) -> str:
        requested.append(name)
        return str(fetched)

    hub = SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    command = tuning("org/name", text, tmp_path, "hub", "--steps", "5")
    assert main(command) == 0
    assert read_about(folder_of(command) / "run.json")["recipe"]["start"] == "org/name"
    assert sample.main(["org/name", "--prompt", "the cat", "--n", "5"]) == 0
    assert set(requested) == {"org/name"}
