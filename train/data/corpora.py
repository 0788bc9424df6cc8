"""Texts to train on: one that every Python brings along, one to download once, or any of your own."""

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
    """A text as tokens: the first 90 % to train on, the rest held out."""

    tokenizer: Tokenizer
    train: Int[np.ndarray, " n"]
    validation: Int[np.ndarray, " m"]
    characters_per_token: float
    """in the validation part; losses per token become losses per character by it"""
    sha256: str


def load_corpus(name: str, tokenizer: str | Tokenizer, context: int) -> Corpus:
    """The corpus of this name or path, tokenized and split by position.

    Args:
        name: python-docs, shakespeare or a path.
        tokenizer: "characters" of the text, "bytes", or one that there is already.
        context: tokens that a model sees at once.

    Raises:
        ValueError: it is empty, not UTF-8, too short for windows of this context, or no text for the tokenizer.
        OSError: it cannot be read or downloaded.
    """
    text = NAMED[name]() if name in NAMED else read_path(name)
    if not text:
        raise ValueError(f"the corpus {name!r} is empty; give it some text")
    if isinstance(tokenizer, str):
        tokenizer = Characters.of(text) if tokenizer == "characters" else Bytes()
    train, validation, ratio = _split(text, tokenizer)
    if len(train) <= context or len(validation) < 2:
        raise ValueError(
            f"the corpus {name!r} is too short: its first 90 % are {len(train)} tokens and the rest "
            f"{len(validation)}; a context of {context} needs at least {context + 1} and 2. "
            "Give more text or a smaller --context"
        )
    return Corpus(tokenizer, train, validation, ratio, hashlib.sha256(text.encode()).hexdigest())


def _split(
    text: str, tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"], float]:
    """The first 90 % and the rest, and the rest's characters per token.

    Subwords and words see the text as a whole, so that none is cut, and what begins every text begins it once.
    """
    if isinstance(tokenizer, Characters | Bytes):
        cut = len(text) * 9 // 10
        train, rest = tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:])
        return train, rest, len(text[cut:]) / max(len(rest), 1)
    tokens = tokenizer.encode(text)
    train, rest = np.split(tokens, [len(tokens) * 9 // 10])
    return train, rest, len(tokenizer.decode(rest)) / max(len(rest), 1)


def python_docs() -> str:
    """The English reference prose that ships inside CPython, topic by topic; about 0.5 MB.

    The text differs a little from one Python version to the next.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError(
            "this Python came without pydoc_data; choose another text: --corpus PATH"
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def shakespeare() -> str:
    """Tiny Shakespeare (karpathy/char-rnn), from the user's cache or downloaded into it.

    Raises:
        ValueError: the bytes are not the expected ones.
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
    """The text of a file, of all files in a folder, or of all that a glob finds, in sorted order.

    Raises:
        ValueError: nothing is there, or a file is not UTF-8.
        OSError: a file cannot be read.
    """
    if not name:
        raise ValueError(f"the corpus has no name; give a path, or one of {', '.join(NAMED)}")
    files = find_files(name)
    if not files:
        raise ValueError(
            f"no corpus {name!r}: it is no file, folder or glob with files in it, nor one of {', '.join(NAMED)}"
        )
    return "".join(piece for _, piece in read_files(files))


def find_files(name: str) -> list[Path]:
    """A file, all files in a folder but the hidden ones, or all that a glob finds; sorted, maybe none."""
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
    """The text of many files with a newline between them, as pieces, each with the file that it is from.

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
    """A file's text in order, decoded from `size` bytes at a time; every line ends in a newline alone.

    Raises:
        ValueError: it is not UTF-8.
        OSError: it cannot be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()  # keeps the half of a character for later
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
            "or train on a text of your own: --corpus PATH"
        ) from error


def _check_sha256(data: bytes, source: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != SHAKESPEARE_SHA256:
        raise ValueError(
            f"{source} is not tiny Shakespeare: its SHA-256 is {found}, not {SHAKESPEARE_SHA256}; "
            "remove the file and try again"
        )
