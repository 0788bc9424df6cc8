"""Texts: found, split by position, or refused."""

from pathlib import Path

import pytest

from tests.helpers.errors import raises
from train.data import corpora


def test_python_docs_is_english_prose_and_splits_by_position():
    corpus = corpora.load_corpus("python-docs", "characters", 64)
    text = corpora.python_docs()
    assert len(text) > 300_000
    assert "".join(map(corpus.tokenizer.decode, (corpus.train, corpus.validation))) == text
    assert len(corpus.train) == len(text) * 9 // 10
    assert corpus.characters_per_token == 1


def test_paths_are_files_folders_and_globs(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name, text in {"b.txt": "bb", "a.txt": "aé", "sub/c.md": "cc", ".hidden": "no"}.items():
        (tmp_path / name).write_text(text)
    assert corpora.read_path(str(tmp_path / "a.txt")) == "aé"
    assert corpora.read_path(str(tmp_path)) == "aé\nbb\ncc"
    assert corpora.read_path(str(tmp_path / "*.txt")) == "aé\nbb"


def test_bytes_count_characters_for_bits_per_character(tmp_path: Path):
    (tmp_path / "a.txt").write_text("é" * 100)
    corpus = corpora.load_corpus(str(tmp_path / "a.txt"), "bytes", 4)
    assert len(corpus.train) == 180
    assert corpus.characters_per_token == 0.5


BAD_CORPORA = {"": (), "short": (4, 1, 64, 65, "--context"), b"caf\xe9 au lait": ("0xe9", 3)}


@pytest.mark.parametrize("content", BAD_CORPORA, ids=repr)
def test_a_corpus_that_cannot_be_used_is_refused(tmp_path: Path, content: str | bytes):
    path = tmp_path / "notes.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with raises(ValueError, path, *BAD_CORPORA[content]):
        corpora.load_corpus(str(path), "characters", 64)


def test_a_missing_corpus_is_refused(tmp_path: Path):
    path = tmp_path / "nothing*"
    with raises(ValueError, path, "python-docs", "shakespeare"):
        corpora.load_corpus(str(path), "characters", 64)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpora.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "jaxformer" / "tinyshakespeare.txt"


def test_shakespeare_is_downloaded_once_and_checked(cache: Path, tmp_path: Path, monkeypatch):
    source = tmp_path / "source.txt"
    source.write_text("First Citizen:")
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", source.as_uri())
    digest = corpora.hashlib.sha256(source.read_bytes()).hexdigest()
    with raises(ValueError, source.as_uri(), digest, corpora.SHAKESPEARE_SHA256):
        corpora.shakespeare()
    assert not cache.exists()
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", digest)
    assert corpora.shakespeare() == "First Citizen:"
    source.unlink()
    assert corpora.shakespeare() == "First Citizen:"
    cache.write_text("First Citizen")
    with raises(ValueError, cache, digest):
        corpora.shakespeare()


def test_shakespeare_offline_says_what_to_do(cache: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", (tmp_path / "gone.txt").as_uri())
    with raises(OSError, cache, "--corpus"):
        corpora.shakespeare()
