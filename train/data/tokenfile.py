"""Token files: a text as tokens on the disk, written in pieces and memory-mapped for reading.

A file has the fields of `HEADER`, the JSON of the tokenizer, zeros up to a multiple of 4096 bytes, then the tokens:
little endian, of two bytes each if the vocabulary fits, and of four otherwise.
"""

import hashlib
import mmap
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt

from jaxformer.checks import check_vocabulary
from jaxformer.pretrained.atomic import replacement
from jaxformer.text.subwords import Subwords
from jaxformer.text.tokenizer import Tokenizer, Tokens, from_json
from train.data.encoding import blocks, encode_pieces

MAGIC = b"jaxformer tokens"
VERSION = 1
HEADER = struct.Struct("<16s II QQQ 32s QI I")
"""Magic, version, bytes per token; vocabulary size, tokens, characters; SHA-256 of the tokens; length and CRC-32 of
the JSON; CRC-32 of all fields before it."""
ALIGNMENT = 4096
BLOCK = 2**18
"""Characters to encode at a time."""


class TokenFile(NamedTuple):
    """An open token file, whose tokens are memory-mapped: only those that are indexed are read."""

    tokenizer: Tokenizer
    tokens: UInt[np.memmap, " tokens"]
    n_characters: int
    sha256: str
    """hash of the bytes of the tokens"""


class UnknownCharacter(ValueError):  # noqa: N818
    """A character without a token, and its position in the text."""

    def __init__(self, character: str, position: int):
        super().__init__(f"the tokenizer has no token for {character!r} at position {position}")
        self.character = character
        self.position = position


def write_tokens(path: Path, tokenizer: Tokenizer, pieces: Iterable[str]) -> TokenFile:
    """Tokenize and write a text that comes in pieces; the file appears under its name once it is complete.

    Raises:
        UnknownCharacter: the tokenizer cannot encode a character of the text.
        ValueError: the text is empty.
        OSError: the file cannot be written; an existing file stays unchanged.
    """
    dtype = token_dtype(tokenizer.n_vocab)
    digest = hashlib.sha256()
    n_tokens = n_characters = 0
    with replacement(path) as file:
        _write(path, file, pack_header(tokenizer, 0, 0, digest.digest()))  # reserves the header
        for tokens, characters in _encode_all(tokenizer, pieces):
            data = tokens.astype(dtype).tobytes()
            digest.update(data)
            _write(path, file, data)
            n_tokens += len(tokens)
            n_characters += characters
        if not n_tokens:
            raise ValueError(f"the text for {path} is empty; give some text")
        file.seek(0)
        _write(path, file, pack_header(tokenizer, n_tokens, n_characters, digest.digest()))
    return open_tokens(path)


def open_tokens(path: Path) -> TokenFile:
    """Open a token file without reading its tokens or checking their SHA-256.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a token file, is damaged, or is truncated.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no token file {path}; write one with python -m train.prepare"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        fixed = file.read(HEADER.size)
        if not fixed.startswith(MAGIC):
            raise ValueError(f"{path} is not a token file; write one with python -m train.prepare")
        if len(fixed) < HEADER.size:
            raise ValueError(f"{path} is truncated in its header; prepare it again")
        _, version, width, n_vocab, n_tokens, n_characters, sha256, length, json_crc, crc = (
            HEADER.unpack(fixed)
        )
        if version != VERSION:
            raise ValueError(
                f"{path} is a token file of version {version}, not {VERSION}; prepare it again"
            )
        if crc != zlib.crc32(fixed[:-4]):
            raise ValueError(f"{path} is damaged: its header has changed; prepare it again")
        written = file.read(length)
    begin = _aligned(HEADER.size + length)
    if size != begin + n_tokens * width:
        raise ValueError(
            f"{path} has {size} bytes instead of {begin + n_tokens * width}, for a header and {n_tokens} tokens "
            f"of {width} bytes; prepare it again"
        )
    if json_crc != zlib.crc32(written):
        raise ValueError(f"{path} is damaged: its tokenizer has changed; prepare it again")
    tokenizer = _read_tokenizer(path, written, n_vocab, width)
    tokens = np.memmap(path, token_dtype(n_vocab), "r", begin, (n_tokens,))
    if hasattr(mmap, "MADV_RANDOM") and isinstance(tokens.base, mmap.mmap):
        # A window is a few pages, so read-ahead would read many times more than is used.
        tokens.base.madvise(mmap.MADV_RANDOM)
    return TokenFile(tokenizer, tokens, n_characters, sha256.hex())


def is_token_file(path: Path) -> bool:
    """Return whether a file begins like a token file."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def token_dtype(n_vocab: int) -> np.dtype[Any]:
    """Return the smaller of two dtypes that can hold every token.

    >>> token_dtype(65_536).itemsize, token_dtype(65_537).itemsize
    (2, 4)
    """
    return np.dtype("<u2" if n_vocab <= 2**16 else "<u4")


def pack_header(tokenizer: Tokenizer, n_tokens: int, n_characters: int, sha256: bytes) -> bytes:
    """Return all bytes before the tokens; the length of this header depends only on the tokenizer."""
    written = tokenizer.to_json().encode()
    fixed = HEADER.pack(
        MAGIC, VERSION, token_dtype(tokenizer.n_vocab).itemsize,
        tokenizer.n_vocab, n_tokens, n_characters, sha256, len(written), zlib.crc32(written), 0,
    )  # fmt: skip
    crc = zlib.crc32(fixed[:-4]).to_bytes(4, "little")
    return (fixed[:-4] + crc + written).ljust(_aligned(HEADER.size + len(written)), b"\0")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _read_tokenizer(path: Path, written: bytes, n_vocab: int, width: int) -> Tokenizer:
    try:
        tokenizer = from_json(written.decode())
    except ValueError as error:
        raise ValueError(f"the tokenizer in {path} cannot be read: {error}") from error
    if tokenizer.n_vocab != n_vocab or token_dtype(n_vocab).itemsize != width:
        raise ValueError(
            f"{path} has a header for {n_vocab} entries of {width} bytes, but its tokenizer has "
            f"{tokenizer.n_vocab}; prepare it again"
        )
    return tokenizer


def _encode_all(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[tuple[Tokens, int]]:
    """Yield the tokens of each part of the text, and its number of characters."""
    if isinstance(tokenizer, Subwords):
        yield from encode_pieces(tokenizer, pieces, BLOCK)
        return
    done = 0
    for block in blocks(pieces, BLOCK, anywhere=True):
        yield _encode(tokenizer, block, done), len(block)
        done += len(block)


def _encode(tokenizer: Tokenizer, text: str, before: int) -> Tokens:
    try:
        tokens = tokenizer.encode(text)
    except ValueError as error:
        places = [text.index(c) for c in set(text) if not _knows(tokenizer, c)]
        if not places:
            raise
        raise UnknownCharacter(text[min(places)], before + min(places)) from error
    check_vocabulary(tokens, tokenizer.n_vocab)
    return tokens


def _knows(tokenizer: Tokenizer, character: str) -> bool:
    try:
        tokenizer.encode(character)
    except ValueError:
        return False
    return True


def _write(path: Path, file: BinaryIO, data: bytes) -> None:
    try:
        file.write(data)
        file.flush()  # report a full disk here, not when the file is closed
    except OSError as error:
        raise OSError(
            f"{path} could not be written ({error}); free some space there, or choose another place"
        ) from error
