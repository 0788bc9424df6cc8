"""Data: texts, token files and toy tasks behind one interface."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer import Bytes
from tests.helpers.runs import check_refused, final_state, folder_of, numbers, options
from train.__main__ import main, parse
from train.data.dataset import open_data
from train.data.tasks import TASKS
from train.data.tokenfile import write_tokens
from train.run import keys

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def written(corpus: Path) -> Path:
    """Write the text of `corpus` as a token file."""
    path = corpus.with_suffix(".tokens")
    write_tokens(path, Bytes(), [corpus.read_text()])
    return path


@pytest.mark.slow
def test_a_text_and_its_token_file_train_the_same_model(corpus: Path, written: Path):
    text = options(corpus, "text", 10, "--tokenizer", "bytes")
    file = [*options(corpus, "file", 10, "--tokenizer", "bytes"), "--corpus", str(written)]
    one, other = (open_data(parse(command).recipe) for command in (text, file))
    steps, key = np.array([0, 7, 8]), keys(3).batches
    jax.tree.map(np.testing.assert_array_equal, one.draw(key, steps), other.draw(key, steps))
    rows = other.held_out.windows[other.held_out.counted.all(-1)]
    # Except the tokens after the last full window.
    np.testing.assert_array_equal(one.held_out.windows.reshape(-1, 13)[: len(rows)], rows)
    assert main(text) == main(file) == 0
    jax.tree.map(np.testing.assert_array_equal, final_state(text), final_state(file))


CONTEXTS = {"grammar": 8, "induction": 9, "modular-addition": 3, "brackets": 5}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_toy_task_trains_and_shows_its_floor(tmp_path: Path, capsys, task: str):
    shape = ["--context", str(CONTEXTS[task]), "--chunk", "2", "--validate-every", "2"]
    command = [*options(tmp_path / "none", task, 2, *shape), "--corpus", task]
    assert main(command) == 0
    losses = [x["validation_loss"] for x in numbers(folder_of(command)) if "validation_loss" in x]
    assert len(losses) == 2
    data = open_data(parse(command).recipe)
    assert data.perfect is not None
    assert data.perfect < min(losses)
    out = capsys.readouterr().out
    [row] = [line for line in out.splitlines() if "perfect" in line]
    assert f"{data.perfect:.3f}" in row
    assert all(name.split()[0] in out for name in data.yardsticks())
    assert "bits per character" not in out


BAD = {
    "a task's context": (["--corpus", "brackets"], ("context=12", "brackets")),
    "too many rows": (
        ["--corpus", "modular-addition", "--context", "3", "--batch", "3831"], ("batch=3831", 3830)),
    "a task's order": (
        ["--corpus", "grammar", "--order", "shuffled"], ("order=shuffled", "grammar", "--order")),
    "a long context": (["--context", "400"], (400, 401, "--context")),
    "a long context in memory": (["--context", "3100"], (3096, 3100, 3101, "--context")),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_data_that_does_not_fit_is_refused(corpus: Path, written: Path, capsys, what: str):
    extra, named = BAD[what]
    source = corpus if "memory" in what else written
    command = [*options(corpus, "bad"), "--corpus", str(source), *extra]
    check_refused(capsys, command, *named)
    assert not folder_of(command).exists()
