"""The command that writes token files: the tokens of a corpus, or an error in one line."""

import errno
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer import Bytes, Characters, init, save
from tests.helpers.errors import check_names, raises
from tests.helpers.models import SEED
from train import prepare
from train.data import corpora
from train.data.corpora import find_files, load_corpus, read_files, read_path
from train.data.tokenfile import UnknownCharacter, open_tokens, write_tokens

KEY = jax.random.key(0)
TEXT = "Der Käse – 3 €, 😀 sagte sie;\nnothing  more \n than words, words. " * 30


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.tokens"
    write_tokens(path, Characters.of(TEXT), [TEXT])
    return path


@pytest.mark.parametrize("kind", ["bytes", "characters", "file", "model"])
def test_a_prepared_file_holds_the_tokens_of_the_corpus(tmp_path: Path, notes: Path, kind: str):
    made = Characters("".join(sorted(set(TEXT), reverse=True)))
    (tmp_path / "file").write_text(made.to_json())
    save(tmp_path / "m", init(SEED, KEY), SEED, Characters("ab"))
    model = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / "model").write_text(json.dumps(model | {"tokenizer": json.loads(made.to_json())}))
    name = kind if kind in ("bytes", "characters") else str(tmp_path / kind)
    out = tmp_path / "new" / "corpus.tokens"
    assert prepare.main([str(notes), "--tokenizer", name, "--out", str(out)]) == 0
    file = open_tokens(out)
    assert file.n_characters == len(TEXT)
    assert file.tokenizer.decode(np.asarray(file.tokens, np.int32)) == TEXT
    assert not file.tokens.flags.writeable
    assert file.tokens.offset % 4096 == 0
    if kind in ("bytes", "characters"):
        corpus = load_corpus(str(notes), kind, 8)
        whole = np.concatenate([corpus.train, corpus.validation])
        np.testing.assert_array_equal(file.tokens, whole)
        assert file.tokenizer.to_json() == corpus.tokenizer.to_json()
    else:
        np.testing.assert_array_equal(file.tokens, made.encode(TEXT))


def test_the_command_says_in_one_line_what_it_wrote(tmp_path: Path, notes: Path, capsys):
    out = tmp_path / "corpus.tokens"
    assert prepare.main([str(notes), "--tokenizer", "bytes", "--out", str(out)]) == 0
    n = len(TEXT.encode())
    said = capsys.readouterr().out
    check_names(said, f"{n:,} tokens", f"{2 * n:,} bytes", 256, out)
    assert said.count("\n") == 1


def test_files_are_found_and_joined_as_a_corpus_is(tmp_path: Path):
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    for name, text in {"b.txt": "bb", "a.txt": "", "sub/c.md": "é\r\nc", ".no": "hidden"}.items():
        (folder / name).write_bytes(text.encode())
    out = tmp_path / "corpus.tokens"
    command = [str(folder), str(folder / "*.txt"), "--out", str(out), "--tokenizer", "bytes"]
    assert prepare.main(command) == 0
    file = open_tokens(out)
    text = Bytes().decode(np.asarray(file.tokens, np.int32))
    assert text == read_path(str(folder)) == "\nbb\né\nc"
    names = [path.name for path, _ in read_files(find_files(str(folder)))]
    assert names == ["a.txt", "b.txt", "b.txt", "c.md"]


def refused(capsys, command: list[str], *named: object) -> None:
    assert prepare.main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    check_names(error, *named)


def test_what_cannot_be_prepared_is_refused(tmp_path: Path, notes: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # no network
    out = ["--out", str(tmp_path / "corpus.tokens")]
    (tmp_path / "latin.txt").write_bytes(b"x" * 2**18 + b"caf\xe9 au lait")
    (tmp_path / "half.txt").write_bytes("só €".encode()[:-1])
    (tmp_path / "empty.txt").touch()
    refused(capsys, out)
    refused(capsys, [str(tmp_path / "no*"), "", *out], "''")
    refused(capsys, [str(tmp_path / "not*.md"), *out], tmp_path / "not*.md")
    for name, byte, place in (("latin.txt", "0xe9", 2**18 + 3), ("half.txt", "0xe2", 4)):
        refused(capsys, [str(tmp_path / name), *out], tmp_path / name, byte, place)
    for kind in ("bytes", "characters"):
        refused(capsys, [str(tmp_path / "empty.txt"), "--tokenizer", kind, *out])
    words = [str(notes), "--tokenizer", "words", *out]
    refused(capsys, words, "'words'", "characters", "bytes")
    broken = tmp_path / "broken.json"
    for content, named in (('{"kind": ', ()), ('{"config": {}}', ("characters", "bytes"))):
        broken.write_text(content)
        refused(capsys, [str(notes), "--tokenizer", str(broken), *out], broken, *named)
    refused(capsys, [str(notes), "--out", str(notes / "x")], notes, "--out", notes / "x")
    assert not list(tmp_path.glob("*.tokens")) + list(tmp_path.glob(".*"))


def test_an_unknown_character_is_named_with_its_file_and_place(tmp_path: Path, notes: Path, capsys):
    (tmp_path / "kinds.json").write_text(Characters.of(TEXT).to_json())
    texts = [notes, tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"]
    for path, text in zip(texts[1:], ["", "is\r\nthis Ωorд?", "Ω"], strict=True):
        path.write_bytes(text.encode())
    out = tmp_path / "corpus.tokens"
    command = [*map(str, texts), "--tokenizer", str(tmp_path / "kinds.json"), "--out", str(out)]
    refused(capsys, command, tmp_path / "b.txt", "'Ω'", 8, len(set(TEXT)))
    assert not out.exists()
    with raises(UnknownCharacter, "'c'", 4):
        write_tokens(out, Characters("ab"), ["ab", "abc"])


def test_a_name_that_is_taken_is_kept(tmp_path: Path, notes: Path, written: Path, capsys):
    before = written.read_bytes()
    command = [str(notes), "--tokenizer", "bytes", "--out", str(written)]
    refused(capsys, command, written, "--out", "--overwrite")
    assert written.read_bytes() == before
    assert prepare.main([*command, "--overwrite"]) == 0
    assert written.read_bytes() != before
    again = ["--out", str(notes), "--overwrite"]
    refused(capsys, [str(notes), *again], notes, "--out")
    (tmp_path / "other.txt").write_text("other")
    refused(capsys, [str(tmp_path / "other.txt"), *again], notes, "--out")
    assert notes.read_text() == TEXT


def test_a_full_disk_is_an_error_and_keeps_the_old_file(notes: Path, written: Path, capsys):
    """A limit on the size of files stands for a full disk."""
    before = written.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        code = prepare.main([str(notes), "--out", str(written), "--overwrite"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    check_names(capsys.readouterr().err, written, f"Errno {errno.EFBIG}")
    assert written.read_bytes() == before
    assert not list(written.parent.glob(".*"))


def test_ctrl_c_ends_the_command_with_130(tmp_path: Path, notes: Path, monkeypatch, capsys):
    def interrupted(*args: object) -> Iterator[str]:
        yield "some"
        raise KeyboardInterrupt

    monkeypatch.setattr(corpora, "read_pieces", interrupted)
    command = [str(notes), "--tokenizer", "bytes", "--out", str(tmp_path / "x.tokens")]
    assert prepare.main(command) == 130
    check_names(capsys.readouterr().err, tmp_path / "x.tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
