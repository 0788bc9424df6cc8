"""Texts to train on: one that ships with Python, one that is downloaded once, or your own files."""

import codecs
import glob
import hashlib
import io
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
from jaxtyping import Int

from jaxformer.pretrained.atomic import replace_file
from jaxformer.text.tokenizer import Bytes, Characters, Tokenizer

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Corpus(NamedTuple):
    """A text as tokens: the first 90 % for training, the rest for validation."""

    tokenizer: Tokenizer
    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    characters_per_token: float
    """of the validation part; converts losses per token to losses per character"""
    sha256: str
    """of the text"""


def load_corpus(name: str, tokenizer: str | Tokenizer, context: int) -> Corpus:
    """Load, tokenize and split the corpus of this name or path.

    Args:
        name: python-docs, shakespeare or a path.
        tokenizer: "characters", "bytes", or an existing tokenizer.
        context: sequence length, in tokens.

    Raises:
        ValueError: the text is empty, not UTF-8, too short for this context, or cannot be tokenized.
        OSError: the text cannot be read or downloaded.
    """
    text = NAMED[name]() if name in NAMED else read_path(name)
    if not text:
        raise ValueError(f"the corpus {name!r} is empty; give another --corpus")
    if isinstance(tokenizer, str):
        tokenizer = Characters.of(text) if tokenizer == "characters" else Bytes()
    train, validation, ratio = _split(text, tokenizer)
    if len(train) <= context or len(validation) < 2:
        raise ValueError(
            f"the corpus {name!r} is too short: its first 90 % are {len(train)} tokens and the rest "
            f"{len(validation)}; context={context} needs at least {context + 1} and 2. "
            "Give more text or a smaller --context"
        )
    return Corpus(tokenizer, train, validation, ratio, hashlib.sha256(text.encode()).hexdigest())


def _split(
    text: str, tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"], float]:
    """Tokenize and split: return the first 90 %, the rest, and the characters per token of the rest.

    Subwords and words are tokenized before the split, so that it cuts none of them and special tokens that begin a text
    occur once.
    """
    if isinstance(tokenizer, Characters | Bytes):
        cut = len(text) * 9 // 10
        train, rest = tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:])
        return train, rest, len(text[cut:]) / max(len(rest), 1)
    tokens = tokenizer.encode(text)
    train, rest = np.split(tokens, [len(tokens) * 9 // 10])
    return train, rest, len(tokenizer.decode(rest)) / max(len(rest), 1)


def python_docs() -> str:
    """Return the English reference documentation that ships with CPython, about 0.5 MB.

    The text differs slightly between Python versions.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError(
            "this Python has no module pydoc_data; choose another text: --corpus PATH"
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def shakespeare() -> str:
    """Return tiny Shakespeare (karpathy/char-rnn), downloaded once into the user's cache.

    Raises:
        ValueError: the file has the wrong SHA-256.
        OSError: there is no network.
    """
    path = Path(platformdirs.user_cache_dir("jaxformer")) / "tinyshakespeare.txt"
    if not path.is_file():
        data = _download(SHAKESPEARE_URL, path)
        _check_sha256(data, SHAKESPEARE_URL)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
    data = path.read_bytes()
    _check_sha256(data, str(path))
    return data.decode()


NAMED: dict[str, Callable[[], str]] = {"python-docs": python_docs, "shakespeare": shakespeare}


def read_path(name: str) -> str:
    """Read a file, all files in a folder, or all files that match a glob, in sorted order.

    Raises:
        ValueError: there is no such file, or a file is not UTF-8.
        OSError: a file cannot be read.
    """
    if not name:
        raise ValueError(f"--corpus is empty; give a path, or one of {', '.join(NAMED)}")
    files = find_files(name)
    if not files:
        raise ValueError(
            f"there is no corpus {name!r}; give a file, a folder or a glob with files, or one of {', '.join(NAMED)}"
        )
    return "".join(piece for _, piece in read_files(files))


def find_files(name: str) -> list[Path]:
    """Return a file, the files in a folder without hidden ones, or those that match a glob; sorted, perhaps none."""
    path = Path(name)
    if path.is_dir():
        return sorted(
            f
            for f in path.rglob("*")
            if f.is_file() and not any(part.startswith(".") for part in f.relative_to(path).parts)
        )
    if path.exists():
        return [path]
    found = glob.glob(str(path), recursive=True)  # noqa: PTH207  may be absolute
    return sorted(Path(f) for f in found if Path(f).is_file())


def read_files(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the text of many files in pieces, each with its file; a newline separates the files.

    Raises:
        ValueError: a file is not UTF-8.
        OSError: a file cannot be read.
    """
    for i, path in enumerate(files):
        if i:
            yield files[i - 1], "\n"
        for piece in read_pieces(path):
            yield path, piece


def read_pieces(path: Path, size: int = 2**18) -> Iterator[str]:
    """Yield the text of a file, decoded from `size` bytes at a time, with newlines normalized.

    Raises:
        ValueError: the file is not UTF-8.
        OSError: the file cannot be read.
    """
    decoder = codecs.getincrementaldecoder(
        "utf-8"
    )()  # keeps an incomplete character for the next call
    lines = io.IncrementalNewlineDecoder(None, translate=True)
    done = 0
    with path.open("rb") as file:
        while True:
            data = file.read(size)
            done += len(data)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                offset = done - len(error.object) + error.start
                raise ValueError(
                    f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {offset}; "
                    "convert it, for example with iconv -t utf-8"
                ) from error
            if text := lines.decode(text, final=not data):
                yield text
            if not data:
                return


def _download(url: str, path: Path) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310  a constant https URL
            return response.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise OSError(
            f"could not download {url} ({error}); without a network, put the file at {path}, "
            "or train on another text: --corpus PATH"
        ) from error


def _check_sha256(data: bytes, source: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != SHAKESPEARE_SHA256:
        raise ValueError(
            f"{source} is not tiny Shakespeare: its SHA-256 is {found}, not {SHAKESPEARE_SHA256}; "
            "remove the file and try again"
        )
