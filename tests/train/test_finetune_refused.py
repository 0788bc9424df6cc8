"""Runs that start from a model: options, texts and folders that are refused."""

import shutil
from pathlib import Path

import pytest

from jaxformer import Characters, export, load, save
from tests.helpers.models import SEED, random_params
from tests.helpers.runs import Finished, check_refused, copied_run, folder_of, options
from tests.helpers.tuned import foreign, text_at, tuning
from train.__main__ import main

pytestmark = pytest.mark.usefixtures("standard_promotion")


REFUSED: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "a size": (["--config.n-layers", "3"], ("--config.n-layers", "--start")),
    "an equal size": (["--config.n_layers=4"], ("--config.n-layers", "--start")),
    "a tokenizer": (["--tokenizer", "bytes"], ("--tokenizer", "--start")),
    "a long context": (["--context", "33"], ("context=33", "config.n_context=32")),
    "a task": (["--corpus", "grammar"], ("grammar", "--corpus", "--start")),
    "nowhere": (["--start", "/no/such/model"], ("/no/such/model",)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_impossible_options_are_refused(what: str, tmp_path: Path, capsys):
    extra, named = REFUSED[what]
    start = foreign(tmp_path / "model", "gpt2-plain")
    check_refused(capsys, [*tuning(start, text_at(tmp_path), tmp_path, "x"), *extra], *named)
    assert not (tmp_path / "runs").exists()


def test_a_text_that_the_model_s_tokenizer_cannot_read_is_refused(tmp_path: Path, capsys):
    save(tmp_path / "model", random_params(SEED), SEED, Characters("abcdefghijk"))
    command = tuning(tmp_path / "model", text_at(tmp_path), tmp_path, "x")
    check_refused(capsys, command, "'t'", "position 0", 11)


@pytest.mark.slow
def test_another_start_is_another_run(tmp_path: Path, capsys):
    start, text = foreign(tmp_path / "model"), text_at(tmp_path)
    command = tuning(start, text, tmp_path, "run", "--steps", "10")
    assert main(command) == 0
    other, resume = foreign(tmp_path / "other"), [*command, "--resume"]
    changed = tuning(other, text, tmp_path, "run", "--steps", "10", "--resume")
    check_refused(capsys, changed, folder_of(command), "recipe.start", start, other)
    without = options(text, "run", 10, "--resume")
    check_refused(capsys, without, "recipe.start", start, None, "start_sha256")
    params, config, tokenizer = load(start)
    shutil.rmtree(start)
    check_refused(capsys, resume, start)
    export(start, params._replace(W_E=params.W_E + 1), config, tokenizer, "llama")
    check_refused(capsys, resume, folder_of(command), "start_sha256")
    export(start, params, config, tokenizer, "llama")
    assert main(resume) == 0


def test_overwriting_what_to_start_from_is_refused(finished: Finished, corpus: Path, capsys):
    folder = folder_of(copied_run(finished, corpus, "run"))
    for start in (folder, folder / "model"):
        again = tuning(start, corpus, corpus.parent, "run", "--overwrite")
        assert folder_of(again) == folder
        check_refused(capsys, again, start, folder, "--overwrite", "--name")
    assert (folder / "model" / "model.json").is_file()
