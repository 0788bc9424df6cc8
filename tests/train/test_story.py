"""The story of the README: on a planted circuit, and as the command that trains its own model."""

import dataclasses
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer import Characters, init, save
from tests.helpers import circuits
from tests.helpers.errors import check_names
from tests.helpers.models import NAMED, SEED
from train import story

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG"


def folder_with(path: Path, params, config) -> str:
    save(path / "model", params, config, Characters("abcdefghijklmnop"[: config.n_vocab]))
    return str(path / "model")


@pytest.mark.slow
def test_it_finds_a_planted_circuit(tmp_path: Path, capsys):
    circuit = circuits.induction()
    folder = folder_with(tmp_path, circuit.params, circuit.config)
    picture = tmp_path / "found.png"
    assert story.main(["--load", folder, "--picture", str(picture)]) == 0
    said = capsys.readouterr().out
    for name in ("induction", "previous"):
        layer, head = circuit.heads[name]
        check_names(said, f"{layer}.{head}")
    check_names(said, "1.00", f"{circuits.V} of {circuits.V} tokens")
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.slow
def test_its_scores_are_those_of_the_planted_circuit():
    circuit = circuits.induction()
    found = list(story.tell(circuit.params, circuit.config).values())
    induction, previous = np.zeros((2, 2, 2))
    induction[circuit.heads["induction"]] = previous[circuit.heads["previous"]] = 1
    np.testing.assert_allclose(found[0], induction, atol=0.01)
    np.testing.assert_allclose(found[1], induction + previous, atol=0.01)
    np.testing.assert_allclose(found[2][0], previous[0], atol=0.01)
    np.testing.assert_allclose(found[3], previous, atol=0.01)


@pytest.mark.processes
def test_the_readme_s_command_trains_a_model_and_takes_it_apart_in_time(tmp_path: Path):
    """In a separate process, because XLA does not optimise in the tests."""
    command = [sys.executable, "-m", "train.story", "--picture", str(tmp_path / "story.png")]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert (
        time.monotonic() - begun < 300
    )  # 60 s on two idle cores; other tests run at the same time
    scores = done.stdout.split("1. Look")[1].splitlines()[1:3]
    assert max(map(float, scores[1].split()[2:])) > 0.9
    check_names(done.stdout, "62 tokens")
    assert (tmp_path / "story.png").read_bytes().startswith(PNG)


def check_refused(capsys, options: list[str], *named: object) -> None:
    """Check that the command fails with one line that names these values."""
    assert story.main(options) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    check_names(err, *named)


OTHERS = {
    "n_kv_heads=2": NAMED["modern"],
    "n_layers=1": dataclasses.replace(SEED, n_layers=1),
    "n_vocab=2": dataclasses.replace(SEED, n_vocab=2),
}


@pytest.mark.parametrize("named", OTHERS)
def test_an_unsuitable_model_is_refused(named: str, tmp_path: Path, capsys):
    config = OTHERS[named]
    folder = folder_with(tmp_path, init(config, jax.random.key(0)), config)
    check_refused(capsys, ["--load", folder], named)


def test_a_missing_model_is_refused(tmp_path: Path, capsys):
    picture, none = tmp_path / "story.png", tmp_path / "none"
    check_refused(capsys, ["--load", str(none), "--picture", str(picture)], none)
    assert not picture.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("context", "vocabulary"), [(4, 11), (5, 11), (12, 3), (30, 62)])
def test_the_answer_is_the_token_that_followed_the_last_token_before(context: int, vocabulary: int):
    config = dataclasses.replace(SEED, position="learned", n_context=context, n_vocab=vocabulary)
    texts = story.write_texts(config)
    for clean, corrupted, answer in zip(texts.clean, texts.corrupted, texts.answers, strict=True):
        earlier = clean[:-1].tolist()
        assert earlier[earlier.index(int(clean[-1])) + 1] == answer
        assert int(clean[-1]) not in corrupted[:-1].tolist()


def test_a_model_whose_best_head_has_none_before_it_ends_the_story(tmp_path: Path, capsys):
    """With the layers of the induction circuit swapped, the best head is in the first layer."""
    circuit = circuits.induction()
    blocks = jax.tree.map(lambda stacked: stacked[::-1], circuit.params.blocks)
    folder = folder_with(tmp_path, circuit.params._replace(blocks=blocks), circuit.config)
    assert story.main(["--load", folder, "--picture", str(tmp_path / "s.png")]) == 1
    assert re.search(r"\b0\.[01]\b", capsys.readouterr().err)  # the head


def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path, capsys):
    nowhere, unknown = tmp_path / "none" / "story.png", tmp_path / "story.xyz"
    check_refused(capsys, ["--picture", str(nowhere)], nowhere)
    check_refused(capsys, ["--picture", str(tmp_path)], tmp_path, ".png")
    check_refused(capsys, ["--picture", str(unknown)], unknown, ".png")
    check_refused(capsys, ["--steps", "0"], "steps=0")
