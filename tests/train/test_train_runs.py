"""Runs: the files that they write, and that runs are not confused with each other."""

import json
import shutil
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest

from jaxformer import forward, load
from jaxformer.config import Config
from jaxformer.config_checks import FORMER_NAMES, flat_fields
from tests.helpers.errors import check_names
from tests.helpers.models import LATE
from tests.helpers.runs import (
    Finished,
    check_refused,
    copied_run,
    final_state,
    folder_of,
    kept_steps,
    numbers,
    options,
)
from train.__main__ import main, parse
from train.recipe import Watch

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_a_run_writes_its_files_and_its_model_is_the_best_one(finished: Finished):
    folder = folder_of(finished.command)
    names = {path.name for path in folder.iterdir()}
    files = "metrics.jsonl", "report.png", "run.json", "samples.txt"
    assert names == {*files, "checkpoints", "model"}
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    lines = numbers(folder)
    assert [line["step"] for line in lines if "loss" in line] == list(range(5, 41, 5))
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 10, 20, 30, 40]
    assert losses[-1] < losses[0]
    words = ("unigram", "bigram", "trigram", "this model", "bits per character")
    check_names(finished.said, *words, f"best validation loss {min(losses):.4f}")
    params, config, tokenizer = load(folder / "model")
    assert tokenizer is not None
    tokens = jax.numpy.asarray(tokenizer.encode("To be"))
    assert forward(params, config, tokens).logits.shape == (5, config.n_vocab)
    assert kept_steps(folder) == {
        40,
        10 * int(np.argmin(losses[:-1])),
    }  # as known when step 40 was saved


def test_an_existing_run_is_kept_unless_overwritten(finished: Finished, corpus: Path, capsys):
    copied_run(finished, corpus, "once")
    command = options(corpus, "once", 5)
    folder = folder_of(command)
    before = numbers(folder)
    check_refused(capsys, command, folder, "--name", "--resume", "--overwrite")
    assert numbers(folder) == before
    assert main([*command, "--overwrite"]) == 0
    assert numbers(folder)[-1]["step"] == 5
    assert kept_steps(folder) == {0, 5}


def test_overwrite_never_removes_a_folder_that_is_not_a_run(corpus: Path, capsys):
    precious = corpus.parent / "runs" / "papers"
    precious.mkdir(parents=True)
    (precious / "thesis.txt").write_text("years of work")
    check_refused(capsys, [*options(corpus, "papers"), "--overwrite"], precious, "run.json")
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_resuming_another_recipe_or_text_is_refused(finished: Finished, corpus: Path, capsys):
    command = copied_run(finished, corpus, "was")
    other = [*command, "--config.d-mlp", "64", "--optimizer.learning-rate", "0.1", "--resume"]
    check_refused(
        capsys, other,
        folder_of(command), "recipe.config.d_mlp", 32, 64, "recipe.optimizer.learning_rate", 0.003, 0.1,
    )  # fmt: skip
    corpus.write_text(corpus.read_text() + "?")
    check_refused(capsys, [*command, "--resume"], folder_of(command), "corpus_sha256")
    never = options(corpus, "never")
    check_refused(capsys, [*never, "--resume"], folder_of(never), "--resume")


BAD = {
    "a long context": (
        ["--config.position", "learned", "--config.n-context", "8"], ("context=12", "config.n_context=8")),
    "no heads": (["--config.n-heads", "0"], ("n_heads=0", 1)),
    "no steps": (["--steps", "0"], ("steps=0",)),
    "odd validation": (["--validate-every", "7"], ("validate_every=7", "chunk=5")),
    "negative rate": (["--optimizer.learning-rate", "-1"], ("learning_rate=-1.0",)),
    "no name": (["--name", ".."], ("name='..'", "--runs")),
    "a path": (["--name", "../up"], ("name='../up'", "--runs")),
    "both": (["--resume", "--overwrite"], ("--resume", "--overwrite")),
    "no checkpoint": (["--keep", "0"], ("keep=0", 1)),
    "odd parts": (["--accumulate", "3"], ("batch=4", "accumulate=3")),
    "blind": (
        ["--watch", "induction", "--compute.kernel", "fused"],
        ('kernel="fused"', "--watch induction", 'kernel="einsum"')),
    "alone": (["--watch", "previous-token", "--context", "1"], ("context=1", "--watch previous-token", 2)),
    "short": (["--watch", "induction", "--context", "3"], ("context=3", "--watch induction", 4)),
    "64 bits": (["--compute.dtype", "float64"], ('dtype="float64"', "jax_enable_x64")),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_options_are_refused(corpus: Path, capsys, what: str):
    extra, named = BAD[what]
    with pytest.raises(SystemExit) as stopped:
        main([*options(corpus, "bad"), *extra])
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())  # tyro prints it in a box
    check_names(said, *named)
    assert not (corpus.parent / "runs").exists()


UNREAD = {
    "rotary": (["--config.rotary.base", "1e6"], ("--config.rotary.base", 'position="rotary"')),
    "table": (["--config.n-context=9"], ("--config.n-context", 'position="learned"')),
    "the default": (["--config.norm_place", "before"], ("--config.norm-place", 'norm="layer"')),
    "gates": (["--config.d-mlp", "0", "--config.gated"], ("--config.gated", "d_mlp above 0")),
    "momentum": (["--optimizer.momentum", "0.9"], ("--optimizer.momentum", "name=muon")),
    "decay": (["--optimizer.decay", "0.5"], ("--optimizer.decay", "schedule=stable")),
}


@pytest.mark.parametrize("what", UNREAD)
def test_an_option_that_nothing_reads_is_refused(corpus: Path, capsys, what: str):
    extra, named = UNREAD[what]
    check_refused(capsys, ["seed", "--corpus", str(corpus), *extra], *named)


def test_a_value_that_looks_like_an_option_is_none():
    command = parse(["seed", "--name", "config.n_layers", "--corpus", "optimizer.momentum"])
    assert command.name == "config.n_layers"


def test_an_unknown_preset_is_refused(capsys):
    check_refused(capsys, ["sead"], "'sead'", "seed")


def test_a_runs_folder_that_cannot_be_written_is_refused(corpus: Path, capsys):
    runs = corpus.parent / "runs"
    runs.write_text("a file where the folder should be")
    check_refused(capsys, options(corpus, "x"), runs / "x")


@pytest.mark.slow
def test_a_model_without_layers_is_saved_and_resumed(corpus: Path):
    command = options(corpus, "bigram", 10, "--config.n-layers", "0", "--watch", *get_args(Watch))
    assert main(command) == 0
    whole = final_state(command)
    shutil.rmtree(folder_of(command) / "checkpoints" / "10")
    assert main([*command, "--resume"]) == 0
    jax.tree.map(np.testing.assert_array_equal, whole, final_state(command))


@pytest.mark.parametrize("recipe", ["null", "5", '"context"', "{}"])
def test_a_run_json_that_does_not_describe_a_run_is_refused(corpus: Path, capsys, recipe: str):
    folder = corpus.parent / "runs" / "hurt"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(f'{{"corpus_sha256": "", "recipe": {recipe}}}')
    check_refused(capsys, [*options(corpus, "hurt"), "--resume"], folder / "run.json")


def test_a_run_of_an_earlier_version_can_be_resumed(finished: Finished, corpus: Path):
    command = copied_run(finished, corpus, "older")
    path = folder_of(command) / "run.json"
    about = json.loads(path.read_text())
    recipe = about["recipe"]
    recipe["config"] = flat_fields(Config.from_dict(recipe["config"]))
    for late in LATE:
        del recipe["config"][late]
    former = {name: before for before, name in FORMER_NAMES.items()}
    recipe["config"] = {former.get(name, name): x for name, x in recipe["config"].items()}
    assert {"rotary_base", "rotary_fraction"} <= recipe["config"].keys()
    recipe["optimizer"]["last_share"] = recipe["optimizer"].pop("final_lr_fraction")
    del recipe["order"], recipe["watch"], recipe["optimizer"]["schedule"]
    path.write_text(json.dumps(about))
    assert main([*command, "--resume"]) == 0
