"""A text as tokens on the disk: written piece by piece, read only where it is looked at.

A file is the fixed fields of `HEADER`, the tokenizer's JSON, zeros up to a multiple of 4096 bytes, then the
tokens: little endian, two bytes each where the vocabulary fits into them and four otherwise.
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
"""Magic, version, bytes per token; vocabulary, tokens, characters; the tokens' SHA-256; the JSON's
length and CRC-32; the CRC-32 of all that came before it."""
ALIGNMENT = 4096
BLOCK = 2**18
"""Characters that are encoded at once."""


class TokenFile(NamedTuple):
    """An open token file. Its tokens are mapped, not read: only what is indexed comes into memory."""

    tokenizer: Tokenizer
    tokens: UInt[np.memmap, " n"]
    n_characters: int
    sha256: str
    """of the tokens' bytes"""


class UnknownCharacter(ValueError):  # noqa: N818  says what it is
    """A character that the tokenizer has no id for, and its position in the whole text."""

    def __init__(self, character: str, position: int):
        super().__init__(f"the tokenizer has no id for {character!r}, at position {position}")
        self.character = character
        self.position = position


def write_tokens(path: Path, tokenizer: Tokenizer, pieces: Iterable[str]) -> TokenFile:
    """Write a text that comes in pieces, of which few are held at once; the file appears when it is whole.

    Raises:
        UnknownCharacter: the tokenizer has no id for a part of the text.
        ValueError: the text is empty.
        OSError: the file cannot be written; one that was there stays.
    """
    dtype = token_dtype(tokenizer.n_vocab)
    digest = hashlib.sha256()
    n_tokens = n_characters = 0
    with replacement(path) as file:
        _write(path, file, pack_header(tokenizer, 0, 0, digest.digest()))  # holds the place
        for tokens, characters in _encode_all(tokenizer, pieces):
            data = tokens.astype(dtype).tobytes()
            digest.update(data)
            _write(path, file, data)
            n_tokens += len(tokens)
            n_characters += characters
        if not n_tokens:
            raise ValueError(f"there is no text to write into {path}; give it some")
        file.seek(0)
        _write(path, file, pack_header(tokenizer, n_tokens, n_characters, digest.digest()))
    return open_tokens(path)


def open_tokens(path: Path) -> TokenFile:
    """The token file that `write_tokens` wrote. Its tokens are not read here, nor held against their SHA-256.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no token file, damaged, or cut short.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no token file {path}; python -m train.prepare writes one"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        fixed = file.read(HEADER.size)
        if not fixed.startswith(MAGIC):
            raise ValueError(
                f"{path} is no token file; python -m train.prepare writes one from text"
            )
        if len(fixed) < HEADER.size:
            raise ValueError(f"{path} is cut short inside its header; prepare it again")
        _, version, width, n_vocab, n_tokens, n_characters, sha256, length, json_crc, crc = (
            HEADER.unpack(fixed)
        )
        if version != VERSION:
            raise ValueError(
                f"{path} is a token file of version {version}, not {VERSION}; prepare it again"
            )
        if crc != zlib.crc32(fixed[:-4]):
            raise ValueError(f"{path} is damaged: its header changed since it was written")
        written = file.read(length)
    begin = _aligned(HEADER.size + length)
    if size != begin + n_tokens * width:
        raise ValueError(
            f"{path} is cut short or has grown: it is {size} bytes, its header and {n_tokens} tokens of "
            f"{width} bytes are {begin + n_tokens * width}; prepare it again"
        )
    if json_crc != zlib.crc32(written):
        raise ValueError(f"{path} is damaged: its tokenizer changed since it was written")
    tokenizer = _read_tokenizer(path, written, n_vocab, width)
    tokens = np.memmap(path, token_dtype(n_vocab), "r", begin, (n_tokens,))
    if hasattr(mmap, "MADV_RANDOM") and isinstance(tokens.base, mmap.mmap):
        # a window is a few pages: reading ahead of it would read many times more than is looked at
        tokens.base.madvise(mmap.MADV_RANDOM)
    return TokenFile(tokenizer, tokens, n_characters, sha256.hex())


def is_token_file(path: Path) -> bool:
    """Whether a file says that it is one of ours."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def token_dtype(n_vocab: int) -> np.dtype[Any]:
    """The smaller of two types that holds every id.

    >>> token_dtype(65_536).itemsize, token_dtype(65_537).itemsize
    (2, 4)
    """
    return np.dtype("<u2" if n_vocab <= 2**16 else "<u4")


def pack_header(tokenizer: Tokenizer, n_tokens: int, n_characters: int, sha256: bytes) -> bytes:
    """All that comes before the tokens; its length depends on the tokenizer alone."""
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
        raise ValueError(f"{path} holds no tokenizer that can be read: {error}") from error
    if tokenizer.n_vocab != n_vocab or token_dtype(n_vocab).itemsize != width:
        raise ValueError(
            f"{path} does not fit its tokenizer: the header says {n_vocab} entries in {width} bytes, the "
            f"tokenizer has {tokenizer.n_vocab}; prepare it again"
        )
    return tokenizer


def _encode_all(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[tuple[Tokens, int]]:
    """The tokens of the whole text, and of how many characters they are, part by part."""
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
        file.flush()  # a full disk is met here, not when the file is closed
    except OSError as error:
        raise OSError(
            f"{path} could not be written ({error}); make room there or choose another place"
        ) from error
