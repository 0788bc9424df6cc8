"""Whole runs: what they leave behind, and that no run is mixed up with another."""

import json
import shutil
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest

from jaxformer import forward, load
from tests.helpers.models import LATE
from tests.helpers.runs import check_refused, final_state, folder_of, kept_steps, numbers, options
from train.__main__ import main
from train.recipe import Watch

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_a_run_leaves_what_it_promises_and_its_model_is_the_best_one(corpus: Path, capsys):
    assert main(options(corpus, "whole")) == 0
    folder = corpus.parent / "runs" / "whole"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "report.png",
        "samples.txt",
    }
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    lines = numbers(folder)
    assert [line["step"] for line in lines if "loss" in line] == list(range(5, 41, 5))
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 10, 20, 30, 40]
    assert losses[-1] < losses[0]
    out = capsys.readouterr().out
    assert all(
        word in out for word in ("unigram", "bigram", "trigram", "this model", "bits per character")
    )
    assert f"best validation loss {min(losses):.4f}" in out
    config, params, tokenizer = load(folder / "model")
    assert tokenizer is not None
    assert forward(params, config, jax.numpy.asarray(tokenizer.encode("To be"))).logits.shape == (
        5,
        config.n_vocab,
    )
    assert kept_steps(folder) == {40, 10 * int(np.argmin(losses[:-1]))}  # known when 40 was saved


def test_an_existing_run_is_kept_until_overwrite_says_otherwise(corpus: Path, capsys):
    command = options(corpus, "once", 5)
    assert main(command) == 0
    before = numbers(corpus.parent / "runs" / "once")
    check_refused(
        capsys, command, "once exists; choose another name (--name)", "--resume", "--overwrite"
    )
    assert numbers(corpus.parent / "runs" / "once") == before
    assert main([*command, "--overwrite"]) == 0


def test_overwrite_never_removes_a_folder_that_is_no_run(corpus: Path, capsys):
    precious = corpus.parent / "runs" / "papers"
    precious.mkdir(parents=True)
    (precious / "thesis.txt").write_text("years of work")
    check_refused(
        capsys,
        [*options(corpus, "papers"), "--overwrite"],
        "is not a run's folder",
        "nothing was removed",
    )
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_resuming_another_recipe_or_text_is_refused(corpus: Path, capsys):
    command = options(corpus, "was", 10)
    assert main(command) == 0
    other = [*command, "--config.d-mlp", "64", "--optimizer.learning-rate", "0.1", "--resume"]
    check_refused(
        capsys, other,
        "is a run of another recipe", "recipe.config.d_mlp was 32, is 64",
        "recipe.optimizer.learning_rate was 0.003, is 0.1",
    )  # fmt: skip
    corpus.write_text(corpus.read_text() + "?")
    check_refused(capsys, [*command, "--resume"], "corpus_sha256 was")
    check_refused(capsys, [*options(corpus, "never"), "--resume"], "there is no run to resume in")


def test_a_run_from_before_a_choice_was_there_goes_on(corpus: Path):
    command = options(corpus, "old", 10)
    assert main(command) == 0
    path = corpus.parent / "runs" / "old" / "run.json"
    about = json.loads(path.read_text())
    for late in LATE:
        del about["recipe"]["config"][late]
    path.write_text(json.dumps(about))
    assert main([*command, "--resume"]) == 0


BAD = {
    "a long context": (["--config.position", "learned", "--config.n-context", "8"], "context=12 is longer than the"),
    "no heads": (["--config.n-heads", "0"], "n_heads=0 must be at least 1"),
    "no steps": (["--steps", "0"], "steps=0 must be at least 1"),
    "odd validation": (["--validate-every", "7"], "validate_every=7 is not a multiple of chunk=5"),
    "negative rate": (["--optimizer.learning-rate", "-1"], "learning_rate=-1.0 must be above 0"),
    "no name": (["--name", ".."], "name='..' is not a folder's name"),
    "a path": (["--name", "../up"], "name='../up' is not a folder's name"),
    "both": (["--resume", "--overwrite"], "give one of them"),
    "no checkpoint": (["--keep", "0"], "keep=0 must be at least 1"),
    "odd parts": (["--accumulate", "3"], "batch=4 is not a multiple of accumulate=3"),
    "blind": (["--watch", "induction", "--compute.kernel", "fused"], "that --watch induction looks"),
    "alone": (["--watch", "previous-token", "--context", "1"], "context=1 is too short for --watch previous-token"),
    "short": (["--watch", "induction", "--context", "3"], "context=3 is too short for --watch induction"),
    "64 bits": (["--compute.dtype", "float64"], "needs 64-bit JAX"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_options_are_refused(corpus: Path, capsys, what: str):
    extra, sentence = BAD[what]
    with pytest.raises(SystemExit) as stopped:
        main([*options(corpus, "bad"), *extra])
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())  # tyro draws a box around it
    assert sentence in said
    assert not (corpus.parent / "runs").exists()


def test_an_unknown_preset_is_refused(capsys):
    check_refused(capsys, ["sead"], "no preset 'sead'; choose from seed")


def test_a_runs_folder_that_cannot_be_written_is_refused(corpus: Path, capsys):
    (corpus.parent / "runs").write_text("a file where the folder should be")
    check_refused(capsys, options(corpus, "x"), "Not a directory")


def test_a_model_without_layers_is_saved_and_goes_on(corpus: Path):
    command = options(corpus, "bigram", 10, "--config.n-layers", "0", "--watch", *get_args(Watch))
    assert main(command) == 0
    whole = final_state(command)
    shutil.rmtree(folder_of(command) / "checkpoints" / "10")
    assert main([*command, "--resume"]) == 0
    jax.tree.map(np.testing.assert_array_equal, whole, final_state(command))


@pytest.mark.parametrize("recipe", ["null", "5", '"context"', "{}"])
def test_a_description_that_is_no_run_s_is_a_sentence(corpus: Path, capsys, recipe: str):
    folder = corpus.parent / "runs" / "hurt"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(f'{{"corpus_sha256": "", "recipe": {recipe}}}')
    command = [*options(corpus, "hurt"), "--resume"]
    check_refused(capsys, command, "run.json does not describe a run")


def test_a_run_from_before_a_field_was_there_goes_on(corpus: Path):
    command = options(corpus, "older", 10)
    assert main(command) == 0
    path = corpus.parent / "runs" / "older" / "run.json"
    about = json.loads(path.read_text())
    del about["recipe"]["order"], about["recipe"]["watch"], about["recipe"]["optimizer"]["schedule"]
    path.write_text(json.dumps(about))
    assert main([*command, "--resume"]) == 0
