"""Token files: the tokens of the corpus for any pieces, read with no more memory than a batch needs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import Bytes, Characters
from jaxformer.text import tokenizer
from tests.helpers.crashes import Crash
from tests.helpers.errors import check_names, raises
from train.data import tokenfile
from train.data.corpora import read_pieces
from train.data.tokenfile import open_tokens, pack_header, write_tokens

ROOT = Path(__file__).parents[2]
TEXT = "Der Käse – 3 €, 😀 sagte sie;\nnothing  more \n than words, words. " * 30
TEXTS = st.text(st.sampled_from("ab é€😀\r\n"), min_size=1, max_size=40)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.tokens"
    write_tokens(path, Characters.of(TEXT), [TEXT])
    return path


# --- what is written ---


def cut(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@given(text=TEXTS, size=st.integers(1, 9), block=st.integers(1, 9))
def test_pieces_give_the_same_file(tmp_path: Path, monkeypatch, text: str, size: int, block: int):
    path, whole, parts = (tmp_path / name for name in ("some.txt", "whole", "parts"))
    path.write_bytes(text.encode())
    assert "".join(read_pieces(path, size)) == path.read_text(encoding="utf-8")
    write_tokens(whole, Characters.of(text), [text])
    with monkeypatch.context() as patch:
        patch.setattr(tokenfile, "BLOCK", block)
        write_tokens(parts, Characters.of(text), cut(text, size))
    assert whole.read_bytes() == parts.read_bytes()


class Words(Bytes):
    """A tokenizer whose tokens depend on several characters, like GPT-2's."""

    n_vocab = 70_000

    def encode(self, text: str):
        words = re.findall(r" ?\w+| ?[^\s\w]+|\s+(?!\S)|\s+", text)
        ids = [sum(ord(c) * 31**i for i, c in enumerate(word)) % self.n_vocab for word in words]
        return np.array(ids, np.int32)

    def to_json(self) -> str:
        return json.dumps({"kind": "words"})


@pytest.mark.parametrize("block", [1, 7, 50])
def test_words_are_not_cut_and_may_take_four_bytes(tmp_path: Path, monkeypatch, block: int):
    monkeypatch.setitem(tokenizer.KINDS, "words", lambda fields: Words())
    monkeypatch.setattr(tokenfile, "BLOCK", max(block, 20))  # long enough to contain a cut
    file = write_tokens(tmp_path / "words.tokens", Words(), cut(TEXT, block))
    assert file.tokens.dtype == np.dtype("<u4")
    np.testing.assert_array_equal(file.tokens, Words().encode(TEXT))


# --- what it costs ---


MEASURE = """
import sys
from pathlib import Path
import jax, numpy as np
from jaxformer import Bytes
from train.data.batches import draw_windows, held_out_starts, host_starts
from train.data.tokenfile import open_tokens, pack_header, write_tokens

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

def sample(path):
    file = open_tokens(path)
    before = None
    for step in range(60):
        starts = host_starts(jax.random.key(0), np.array([step]), len(file.tokens) - 256, 64)
        assert draw_windows(file.tokens, starts, 256).shape == (1, 64, 257)
        before = before or anonymous()
    draw_windows(file.tokens, held_out_starts(len(file.tokens), 256, 2**16), 256)
    return anonymous() - before

folder = Path(sys.argv[1])
for size in (2**20, 10 * 2**30):
    path = folder / str(size)
    with path.open("wb") as file:
        file.write(pack_header(Bytes(), size // 2, size // 2, bytes(32)))
        file.truncate(file.tell() + size)
    print(sample(path))

def pieces(n):
    for _ in range(n):
        levels.append(anonymous())
        yield "one more line of text to write\\n" * 8192

write_tokens(folder / "little", Bytes(), pieces((levels := []) or 4))
before = anonymous()
write_tokens(folder / "much", Bytes(), pieces((levels := []) or 64))
print(max(levels) - before)
"""


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells RssAnon")
def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small, large, writing = map(float, done.stdout.split())
    assert max(small, large, writing) < 16
    assert (tmp_path / str(10 * 2**30)).stat().st_blocks * 512 < 2**20  # a sparse file


# --- what goes wrong ---


@pytest.mark.parametrize("moment", ["reading", "fsync", "replace"])
def test_interrupted_writing_leaves_no_file(tmp_path: Path, monkeypatch, moment: str):
    def crash(*args: object) -> None:
        raise Crash

    def pieces() -> Iterator[str]:
        yield TEXT
        if moment == "reading":
            crash()

    with monkeypatch.context() as patch:
        if moment != "reading":
            patch.setattr(os if moment == "fsync" else Path, moment, crash)
        with pytest.raises(Crash):
            write_tokens(tmp_path / "corpus.tokens", Bytes(), pieces())
    assert not list(tmp_path.iterdir())


def changed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def with_tokenizer(**changes: Any) -> bytes:
    """Return a file of two tokens whose tokenizer has these attributes replaced."""
    tokenizer = Bytes()
    vars(tokenizer).update(changes)
    return pack_header(tokenizer, 2, 2, bytes(32)) + bytes(4)


DAMAGES = {
    "foreign": (lambda data: b"PK" + data, ("train.prepare",)),
    "empty": (lambda data: b"", ("train.prepare",)),
    "short header": (lambda data: data[:50], ("header",)),
    "version": (lambda data: changed(data, 16), ("version 0", 1)),
    "header": (lambda data: changed(data, 32), ("header",)),
    "tokenizer": (lambda data: changed(data, 110), ("tokenizer",)),
    "cut short": (lambda data: data[:-1], ("bytes",)),
    "grown": (lambda data: data + b"\0", ("bytes",)),
    "vocabulary": (lambda data: with_tokenizer(n_vocab=300), ("300 entries", "2 bytes", 256)),
    "no tokenizer": (lambda data: with_tokenizer(to_json=lambda: "{}"), ("characters", "bytes", "{}")),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_a_changed_file_is_refused(written: Path, what: str):
    damage, named = DAMAGES[what]
    size = written.write_bytes(damage(written.read_bytes()))
    with raises(ValueError, written, *named) as caught:
        open_tokens(written)
    if what in ("cut short", "grown"):
        check_names(str(caught.value), size)


def test_truncated_files_and_changed_headers_are_refused(written: Path):
    data = written.read_bytes()
    header = tokenfile.HEADER.size + len(Characters.of(TEXT).to_json())
    parts = [data[:i] for i in range(0, len(data), 97)]
    for bad in [*parts, *(changed(data, i) for i in range(header))]:
        written.write_bytes(bad)
        with raises(ValueError, "corpus.tokens"):
            open_tokens(written)


def test_a_missing_file_is_refused(tmp_path: Path):
    gone = tmp_path / "gone.tokens"
    with raises(FileNotFoundError, gone, "train.prepare"):
        open_tokens(gone)
