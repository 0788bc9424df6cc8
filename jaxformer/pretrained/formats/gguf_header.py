"""The header of a GGUF file, believed only as far as the file's size allows.

The gguf package reads it too, in 9 to 13 s where this takes 0.9 (SmolLM2's file, on two cores), and of a file that was
cut short it says what NumPy says; from it come the types and the dequantising.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxformer.pretrained.formats.source import Tensor, unreadable

KIND = "GGUF file of version 2 or 3"
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""The metadata's types of one value, as `struct` writes them."""
TEXT, ARRAY = 8, 9
"""The other two of its types."""
MOST = 2**22
"""More values, tensors or bytes of one text than any true header has: a damaged count stops here."""
MOST_DIMS = 4
"""The axes that a tensor of ggml can have."""

PLAIN = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
}
"""The types that are stored as numpy holds them; the others are blocks, dequantised to float32."""


class Place(NamedTuple):
    """Where a tensor's bytes lie and what they are: a GGMLQuantizationType, elements and bytes of its block."""

    kind: Any
    start: int
    n_bytes: int
    block: int
    block_bytes: int


def read_header(
    path: Path, file: BinaryIO
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Place]]:
    """The metadata, and each tensor's shape, dtype and place."""
    header = Header(path, file)
    n_tensors = header.start()
    fields = _fields(header)
    found: dict[str, tuple[Tensor, Place]] = {}
    for _ in range(n_tensors):
        name, tensor, place = _tensor(header)
        if name in found:
            raise unreadable(path, KIND, f"it has two tensors {name!r}")
        found[name] = tensor, place
    start = -(-file.tell() // _alignment(header, fields)) * _alignment(header, fields)
    tensors = {name: tensor for name, (tensor, _) in found.items()}
    places = {name: place._replace(start=start + place.start) for name, (_, place) in found.items()}
    _check_places(header, places, _alignment(header, fields))
    return fields, tensors, places


def _fields(header: "Header") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for _ in range(header.count("the number of keys", least=13)):
        key = header.text("a key")
        if key in fields:
            raise unreadable(header.path, KIND, f"it has the key {key!r} twice")
        fields[key] = header.value(header.number("I", f"the type of {key!r}"), repr(key))
    parts = fields.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ValueError(
            f"{header.path} is one of the {parts} parts of a GGUF file; join them with "
            "llama-gguf-split --merge"
        )
    return fields


def _alignment(header: "Header", fields: Mapping[str, Any]) -> int:
    n = fields.get("general.alignment", 32)
    if type(n) is not int or n < 1 or n & (n - 1):
        raise unreadable(header.path, KIND, f"general.alignment={n!r} is no power of two")
    return n


def _tensor(header: "Header") -> tuple[str, Tensor, Place]:
    """The next tensor; its place is counted from where the data begin."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    path, name = header.path, header.text("a tensor's name")
    n_dims = header.number("I", f"the axes of {name!r}")
    if n_dims > MOST_DIMS:
        raise unreadable(path, KIND, f"tensor {name!r} would have {n_dims} axes")
    shape = tuple(header.number("Q", f"the shape of {name!r}") for _ in range(n_dims))[::-1]
    code, start = header.number("I", f"the type of {name!r}"), header.number("Q", repr(name))
    try:
        kind = GGMLQuantizationType(code)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        reason = f"tensor {name!r} is of type {code}, which the gguf package does not know"
        raise unreadable(path, KIND, reason) from error
    if (shape[-1] if shape else 1) % block:
        reason = f"tensor {name!r} of {list(shape)} has no whole blocks of {kind.name}"
        raise unreadable(path, KIND, reason)
    tensor = Tensor(shape, PLAIN.get(kind.name, np.dtype(np.float32)), path)
    n_bytes = math.prod(shape) // block * block_bytes
    return name, tensor, Place(kind, start, n_bytes, block, block_bytes)


def _check_places(header: "Header", places: Mapping[str, Place], alignment: int) -> None:
    end = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].n_bytes)):
        last = place.start + place.n_bytes
        if last > header.size:
            reason = f"tensor {name!r} would end at byte {last} of {header.size}"
            raise unreadable(header.path, KIND, reason)
        if place.start < end or place.start % alignment:
            reason = f"tensor {name!r} at byte {place.start} is unaligned or lies in another"
            raise unreadable(header.path, KIND, reason)
        end = last


class Header:
    """The numbers and texts of a header in their order, none beyond the end of the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.file = file

    def start(self) -> int:
        """Read up to the metadata: the number of tensors."""
        magic, version = self.take(4, "its first bytes"), self.number("I", "its version")
        if magic != b"GGUF" or version not in (2, 3):
            endian = " (or it is big-endian)" if version & 0xFFFF == 0 else ""
            reason = f"it begins with {magic!r} and version {version}{endian}"
            raise unreadable(self.path, KIND, reason)
        return self.count("the number of tensors", least=24)

    def take(self, n: int, what: str) -> bytes:
        """The next bytes."""
        left = self.size - self.file.tell()
        if n > left:
            raise unreadable(self.path, KIND, f"{what} would take {n} bytes, {left} are left")
        return self.file.read(n)

    def number(self, code: str, what: str) -> Any:
        """One number or bool of a `struct` type."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def count(self, what: str, *, least: int) -> int:
        """How many things follow, each of at least so many bytes."""
        n = self.number("Q", what)
        if n > MOST or n * least > self.size - self.file.tell():
            raise unreadable(self.path, KIND, f"{what} would be {n}")
        return n

    def text(self, what: str) -> str:
        """A text behind its length."""
        data = self.take(self.count(f"the length of {what}", least=1), what)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise unreadable(self.path, KIND, f"{what} is no UTF-8: {error.reason}") from error

    def value(self, kind: int, what: str) -> Any:
        """A value of the metadata: a number, a bool, a text or a list of them."""
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == TEXT:
            return self.text(what)
        if kind != ARRAY:
            raise unreadable(self.path, KIND, f"{what} is of the unknown type {kind}")
        of = self.number("I", f"the type in {what}")
        if of == TEXT:
            return [self.text(what) for _ in range(self.count(f"the length of {what}", least=8))]
        if of not in SCALARS:
            raise unreadable(self.path, KIND, f"{what} is a list of the type {of}")
        code = SCALARS[of]
        n = self.count(f"the length of {what}", least=struct.calcsize(f"<{code}"))
        return list(struct.unpack(f"<{n}{code}", self.take(n * struct.calcsize(f"<{code}"), what)))
