"""Whole runs: never lost, never mixed up, and every failure a sentence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer import Characters, forward, init, load
from tests.models import NAMED, SEED
from train import sample
from train.__main__ import main, parse
from train.loop import fresh_state
from train.runs import Checkpoints, Metrics, read_metrics
from train.sample import continue_text

pytestmark = pytest.mark.usefixtures("standard_promotion")
ROOT = Path(__file__).parents[1]
TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 40
TINY = [
    "--config.n-layers", "1", "--config.d-model", "16", "--config.n-heads", "2", "--config.d-head", "8",
    "--config.d-mlp", "32", "--context", "12", "--batch", "4", "--chunk", "5", "--validate-every", "10",
    "--optimizer.warmup", "5",
]  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    return path


def options(corpus: Path, name: str, steps: int = 40) -> list[str]:
    where = ["--corpus", str(corpus), "--runs", str(corpus.parent / "runs"), "--name", name]
    return ["seed", *TINY, *where, "--steps", str(steps)]


def numbers(folder: Path) -> list[dict[str, float]]:
    """Metrics without the clock's readings."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(folder)]


def final_state(folder: Path, command: list[str]):
    recipe = parse(command).recipe
    tokenizer = load(folder / "model")[2]
    assert tokenizer is not None
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(fresh_state(recipe, recipe.config.for_tokenizer(tokenizer)))
    finally:
        checkpoints.close()


def assert_same_run(corpus: Path, one: str, other: str, steps: int = 40) -> None:
    runs = corpus.parent / "runs"
    assert numbers(runs / one) == numbers(runs / other)
    a, b = (final_state(runs / name, options(corpus, name, steps)) for name in (one, other))
    assert int(a.step) == int(b.step) == steps
    jax.tree.map(np.testing.assert_array_equal, a, b)
    jax.tree.map(
        np.testing.assert_array_equal,
        load(runs / one / "model")[1],
        load(runs / other / "model")[1],
    )


def start_process(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "train", *command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(
        int(p.name) >= step for p in (folder / "checkpoints").glob("[0-9]*") if p.name.isdigit()
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_leaves_what_it_promises_and_its_model_is_the_best_one(corpus: Path, capsys):
    assert main(options(corpus, "whole")) == 0
    folder = corpus.parent / "runs" / "whole"
    names = {path.name for path in folder.iterdir()}
    assert names == {"run.json", "metrics.jsonl", "checkpoints", "model", "loss.png", "samples.txt"}
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
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
    kept = {int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {40, 10 * int(np.argmin(losses))}


def test_a_killed_and_resumed_run_is_the_run_that_was_never_killed(corpus: Path):
    assert main(options(corpus, "whole", 150)) == 0
    command = options(corpus, "killed", 150)
    folder = corpus.parent / "runs" / "killed"
    process = start_process(command)
    wait_for_checkpoint(process, folder, 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert read_metrics(folder)[-1]["step"] < 150
    assert main([*command, "--resume"]) == 0
    assert_same_run(corpus, "whole", "killed", 150)


def test_ctrl_c_saves_and_says_how_to_go_on(corpus: Path):
    steps = 4000
    command = options(corpus, "stopped", steps)
    folder = corpus.parent / "runs" / "stopped"
    process = start_process(command)
    wait_for_checkpoint(process, folder, 10)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the state is saved in" in out
    assert "--resume" in out
    assert f"--steps {steps}" in out
    step = int(final_state(folder, command).step)
    assert 10 <= step < steps
    assert step == read_metrics(folder)[-1]["step"]


def check_refused(capsys, command: list[str], *sentences: str) -> None:
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for sentence in sentences:
        assert sentence in error


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
    corpus.write_text(TEXT + "?")
    check_refused(capsys, [*command, "--resume"], "corpus_sha256 was")
    check_refused(capsys, [*options(corpus, "never"), "--resume"], "there is no run to resume in")


BAD = {
    "a long context": (["--config.position", "learned", "--config.n-context", "8"], "context=12 is longer than the"),
    "no heads": (["--config.n-heads", "0"], "n_heads=0 must be at least 1"),
    "no steps": (["--steps", "0"], "steps=0 must be at least 1"),
    "odd validation": (["--validate-every", "7"], "validate_every=7 is not a multiple of chunk=5"),
    "negative rate": (["--optimizer.learning-rate", "-1"], "learning_rate=-1.0 must be above 0"),
    "no name": (["--name", ".."], "name='..' is not a folder's name"),
    "a path": (["--name", "../up"], "name='../up' is not a folder's name"),
    "both": (["--resume", "--overwrite"], "give one of them"),
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


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_saved(corpus: Path, capsys):
    command = [
        *options(corpus, "nan"),
        "--optimizer.learning-rate",
        "1e30",
        "--optimizer.clip",
        "1e30",
    ]
    check_refused(
        capsys,
        command,
        "the loss or its gradient is no finite number at step",
        "--optimizer.learning-rate",
    )
    params = load(corpus.parent / "runs" / "nan" / "model")[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_full_disk_ends_the_run_with_a_sentence(corpus: Path):
    """Files may not grow past a limit, as on a full disk; what was saved before stays whole."""
    command = options(corpus, "full", 20)
    limit = "import resource, signal, sys, runpy; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    limit += "sys.argv = ['train', *sys.argv[1:]]; runpy.run_module('train', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", limit, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: " in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "lo')
    assert read_metrics(tmp_path) == [{"step": 5, "loss": 1.0}]
    Metrics(tmp_path, 5).write(step=10, loss=0.5)
    assert [line["step"] for line in read_metrics(tmp_path)] == [5, 10]


def test_a_damaged_checkpoint_is_a_sentence(corpus: Path):
    command = options(corpus, "hurt", 10)
    assert main(command) == 0
    for file in (corpus.parent / "runs" / "hurt" / "checkpoints").rglob("*"):
        if file.is_file() and "ocdbt" in str(file):
            os.truncate(file, 3)
    process = start_process([*command, "--resume"])
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: the checkpoint" in out
    assert "cannot be read" in out


def test_a_diverged_validation_is_never_kept(corpus: Path, capsys):
    extra = ["--chunk", "1", "--validate-every", "1", "--optimizer.warmup", "0"]
    command = [*options(corpus, "gone", 1), *extra, "--optimizer.learning-rate", "1e38"]
    check_refused(capsys, command, "the validation loss is no finite number at step 1")
    assert [line["step"] for line in read_metrics(corpus.parent / "runs" / "gone")] == [0, 1]


# --- samples ---


@pytest.mark.parametrize("name", ["seed", "classic"])
def test_greedy_text_is_what_forward_alone_says(name: str):
    config = NAMED[name]
    params = init(config, jax.random.key(5))
    tokenizer = Characters("abcdefghijk")
    text = continue_text(
        params, config, tokenizer, "abcde", 5, jax.random.key(0), temperature=0.0, window=6
    )
    tokens = list(tokenizer.encode("abcde"))
    for _ in range(5):
        logits = forward(params, config, jax.numpy.asarray(np.array(tokens[-6:]))).logits
        tokens.append(int(logits[-1].argmax()))
    assert tokenizer.decode(np.array(tokens[5:])) == text


def test_the_same_key_gives_the_same_text_and_another_another():
    params, tokenizer = init(SEED, jax.random.key(5)), Characters("abcdefghijk")

    def draw(seed: int) -> str:
        key = jax.random.key(seed)
        return continue_text(params, SEED, tokenizer, "a", 40, key, temperature=1.0, window=6)

    assert draw(0) == draw(0) != draw(1)


def test_sampled_tokens_follow_the_model_s_distribution():
    params = init(SEED, jax.random.key(5))
    probabilities = jax.nn.softmax(forward(params, SEED, jax.numpy.array([3])).logits[0] / 0.7)
    n = 1500
    draws = jax.vmap(
        lambda key: sample._draw(
            params,
            SEED,
            jax.numpy.array([3, 0, 0]),
            jax.numpy.array(1),
            key,
            jax.numpy.float32(0.7),
            n=1,
        )[0]
    )(jax.random.split(jax.random.key(0), n))
    expected = n * np.asarray(probabilities)
    chi_square = (np.square(np.bincount(draws, minlength=11) - expected) / expected).sum()
    assert chi_square < 29.6  # 1 in 1000 for 10 degrees of freedom


def test_sample_continues_from_a_run(corpus: Path, capsys):
    assert main(options(corpus, "done", 10)) == 0
    capsys.readouterr()
    folder = str(corpus.parent / "runs" / "done")
    assert sample.main([folder, "--prompt", "To be", "--n", "20"]) == 0
    assert len(capsys.readouterr().out) == len("To be") + 20 + 1
    for extra, sentence in {
        ("--prompt", "Zebra"): "the character 'Z' at position 0 is not in the alphabet",
        ("--prompt", ""): "the prompt is empty",
        ("--n", "0"): "n=0 must be at least 1",
        ("--temperature", "-1"): "temperature=-1.0 must be 0 or a positive number",
    }.items():
        assert sample.main([folder, *extra]) == 1
        assert sentence in capsys.readouterr().err
    assert sample.main([folder + "-not"]) == 1
    assert "holds no model" in capsys.readouterr().err
