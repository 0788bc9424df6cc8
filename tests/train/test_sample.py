"""Sampled texts: from a model and from the folder of a run."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Bytes, Characters, Config, Params, Tokenizer, Words, forward, init, save
from tests.helpers.errors import check_names
from tests.helpers.models import NAMED, SEED
from tests.helpers.runs import ROOT, Finished, folder_of
from train import sample

pytestmark = pytest.mark.usefixtures("standard_promotion")
ALPHABET = Characters("abcdefghijk")


def folder_with(path: Path, config: Config, tokenizer: Tokenizer = ALPHABET) -> str:
    """Save a model, in a folder without run.json."""
    save(path / "model", init(config, jax.random.key(5)), config, tokenizer)
    return str(path / "model")


def likeliest(params: Params, config: Config, prompt: list[int], n: int, context: int) -> list[int]:
    """Return greedy tokens from forward; when the context is full, its latest half stays."""
    window, text = prompt[-context:], []
    for _ in range(n):
        logits = forward(params, config, jnp.asarray(window)).logits
        text.append(int(logits[-1].argmax()))
        window.append(text[-1])
        if len(window) > context:
            window = window[-(context // 2) :]
    return text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("seed", ["--context", "6"]), ("classic", [])])
def test_greedy_text_is_the_argmax_of_forward(
    name: str, options: list[str], tmp_path: Path, capsys
):
    config = NAMED[name]
    folder = folder_with(tmp_path, config)
    command = ["--prompt", "abcdefgh", "--n", "12", "--temperature", "0", *options]
    assert sample.main([folder, *command]) == 0
    params = init(config, jax.random.key(5))
    prompt = ALPHABET.encode("abcdefgh").tolist()
    said = likeliest(params, config, prompt, 12, config.n_context or 6)
    out, err = capsys.readouterr()
    assert out == f"abcdefgh{ALPHABET.decode(np.array(said))}\n"
    check_names(err, "12 tokens")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_seed_determines_the_text(tmp_path: Path, capsys):
    folder = folder_with(tmp_path, SEED)

    def draw(*extra: str) -> str:
        assert sample.main([folder, "--prompt", "a", "--n", "40", *extra]) == 0
        return capsys.readouterr().out

    first = draw("--seed", "1")
    assert first == draw("--seed", "1") != draw("--seed", "2")
    narrow = ["--top-k", "1", "--top-p", "0.9", "--min-p", "0.1", "--repetition-penalty", "1.2"]
    likely = draw("--temperature", "0", "--repetition-penalty", "1.2")
    assert draw(*narrow) == likely
    stop, other = first[20:22], first[30:33]
    for stops in (["--stop", stop, other], ["--stop", other, "--stop", stop]):
        stopped = draw("--seed", "1", *stops)
        ends = [first.index(one, 1) + len(one) for one in (stop, other)]
        assert stopped == f"{first[: min(ends)]}\n"


def test_the_context_is_the_trained_one_unless_the_table_is_shorter():
    assert [sample.fitting(SEED, context) for context in (None, 32)] == [None, 32]
    assert [sample.fitting(NAMED["classic"], context) for context in (None, 32, 4)] == [9, 9, 4]


def test_sample_continues_from_a_run(finished: Finished, capsys):
    folder = folder_of(finished.command)
    texts = []
    for where in ([folder], [folder, "--context", "12"], [folder / "model"]):
        command = [*map(str, where), "--prompt", "To be", "--n", "30"]
        assert sample.main(command) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) == len("To be") + 30 + 1
    check_refused(capsys, [f"{folder}-not"], f"{folder}-not")


def check_refused(capsys, command: list[str], *named: object) -> str:
    """Check that the command fails with one line that names these values; return what it printed before."""
    assert sample.main(command) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    check_names(err, *named)
    return out


REFUSED = {
    ("--prompt", "Zebra"): ("'Z'", "position 0"), ("--prompt", ""): (),
    ("--n", "0"): ("n_tokens=0",), ("--n", "-1"): ("n_tokens=-1",), ("--n", "1000001"): ("n=1000001", "--context"),
    ("--temperature", "-1"): ("temperature=-1.0",), ("--temperature", "nan"): ("temperature=nan",),
    ("--top-k", "0"): ("top_k=0",), ("--top-k", "12"): ("top_k=12", 11),
    ("--top-p", "0"): ("top_p=0.0",), ("--top-p", "1.1"): ("top_p=1.1",),
    ("--temperature", "0", "--top-p", "0.9"): ("temperature=0", "top_p=0.9"),
    ("--min-p", "2"): ("min_p=2.0",), ("--repetition-penalty", "0"): ("repetition_penalty=0.0",),
    ("--context", "0"): ("context=0",), ("--seed", str(2**70)): (f"seed={2**70}",),
    ("--stop", "a", ""): ("''",), ("--stop", "Zebra"): ("'Zebra'", "'Z'"),
}  # fmt: skip


@pytest.mark.parametrize("extra", REFUSED)
def test_invalid_options_are_refused_in_one_line(extra: tuple[str, ...], tmp_path: Path, capsys):
    command = [folder_with(tmp_path, SEED), "--prompt", "abc", *extra]
    assert check_refused(capsys, command, *REFUSED[extra]) == ""


def test_parameters_that_are_nan_are_named(tmp_path: Path, capsys):
    params = jax.tree.map(lambda array: array * jnp.nan, init(SEED, jax.random.key(5)))
    save(tmp_path, params, SEED, ALPHABET)
    command = [str(tmp_path), "--prompt", "abc"]
    assert check_refused(capsys, command, "NaN", "token 0") == "abc\n"


@pytest.mark.slow
def test_bytes_are_decoded_to_text(tmp_path: Path, capsys):
    config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, n_vocab=256)
    folder = folder_with(tmp_path, config, Bytes())
    assert sample.main([folder, "--prompt", "né", "--n", "60", "--temperature", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("né")
    assert "\ufffd" in text  # an untrained model writes invalid UTF-8


@pytest.fixture
def endless(tmp_path: Path):
    """A separate process that generates an endless text, killed after two minutes."""
    env = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    command = ["--prompt", "abc", "--n", "100000000", "--context", "8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "train.sample", folder_with(tmp_path, SEED), *command],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    guard = threading.Timer(120, process.kill)
    guard.start()
    assert process.stdout.read(10).startswith(b"abc")
    yield process
    guard.cancel()
    process.kill()
    process.communicate()


@pytest.mark.processes
def test_ctrl_c_ends_the_line(endless: subprocess.Popen[bytes]):
    endless.send_signal(signal.SIGINT)
    out, error = endless.communicate()
    assert (endless.returncode, error) == (130, b"")
    assert out.endswith(b"\n")


@pytest.mark.processes
def test_a_closed_pipe_ends_the_text_silently(endless: subprocess.Popen[bytes]):
    assert endless.stdout is not None
    assert endless.stderr is not None
    endless.stdout.close()
    assert endless.stderr.read() == b""
    assert endless.wait() == 141
    endless.stdout = None


def test_generated_words_are_separated_from_the_prompt(tmp_path: Path, capsys):
    save(tmp_path / "model", init(SEED, jax.random.key(0)), SEED, Words(list("abcdefghijk")))
    assert sample.main([str(tmp_path / "model"), "--prompt", "a b", "--n", "3"]) == 0
    assert len(capsys.readouterr().out.split()) == 5


def test_an_ensemble_s_members_are_found_with_their_context(tmp_path: Path, capsys):
    (tmp_path / "run.json").write_text('{"corpus_sha256": "", "recipe": {"context": 9}}')
    (tmp_path / "models" / "0").mkdir(parents=True)
    assert sample.find_model(tmp_path / "models" / "0") == (tmp_path / "models" / "0", 9)
    check_refused(capsys, [str(tmp_path)], tmp_path, tmp_path / "models")
