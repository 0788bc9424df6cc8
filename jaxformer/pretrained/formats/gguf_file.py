"""Reader of GGUF, llama.cpp's file format: metadata and tensors of all types, the quantised ones as float32."""

import contextlib
import importlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.pretrained.formats.gguf_header import PLAIN, Place, read_header
from jaxformer.pretrained.formats.source import Tensor, pick, pick_rows

AT_ONCE = 2**20
"""Elements to dequantise at a time, which bounds the memory used beside the result."""


class GGUF:
    """One GGUF file as a Source. `fields` is its metadata as plain Python values."""

    path: Path
    tensors: Mapping[str, Tensor]
    fields: Mapping[str, Any]

    def __init__(self, path: Path) -> None:
        self.path = path
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(path.open("rb"))
            self.fields, self.tensors, self._places = read_header(path, self._file)
            self._closing = stack.pop_all()

    def read(self, name: str) -> np.ndarray:
        """Read one tensor, dequantised if necessary."""
        tensor = pick(self, name, is_open=not self._file.closed)
        return self._elements(name, 0, math.prod(tensor.shape)).reshape(tensor.shape)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows of a tensor, dequantised if necessary."""
        tensor = pick_rows(self, name, start, stop, is_open=not self._file.closed)
        shape = (stop - start, *tensor.shape[1:])
        width = math.prod(tensor.shape[1:])
        return self._elements(name, start * width, stop * width).reshape(shape)

    def _elements(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read a range of elements from the blocks that contain it."""
        place = self._places[name]
        first, last = start // place.block, -(-stop // place.block)
        if place.kind.name in PLAIN:
            return self._blocks(place, first, last).view(self.tensors[name].dtype)
        values = np.empty((last - first) * place.block, np.float32)
        step = max(AT_ONCE // place.block, 1)
        for begin in range(first, last, step):
            end = min(begin + step, last)
            into = slice((begin - first) * place.block, (end - first) * place.block)
            values[into] = self._dequantised(name, self._blocks(place, begin, end))
        return values[start - first * place.block :][: stop - start]

    def _blocks(self, place: Place, first: int, last: int) -> np.ndarray:
        """Read the bytes of some of a tensor's blocks."""
        count = (last - first) * place.block_bytes
        data = np.empty(count, np.uint8)
        self._file.seek(place.start + first * place.block_bytes)
        if self._file.readinto(data.data) != count:
            raise ValueError(f"{self.path} was truncated after it was opened")
        return data

    def _dequantised(self, name: str, blocks: np.ndarray) -> np.ndarray:
        from gguf.quants import dequantize

        place = self._places[name]
        try:
            with np.errstate(all="ignore"):  # a NaN scale gives NaN values
                return dequantize(blocks, place.kind)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.path} holds {name!r} as {place.kind.name}, which the gguf package cannot "
                "dequantise; convert the file to another type with llama-quantize"
            ) from error

    def __enter__(self) -> "GGUF":
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()


def open_gguf(path: str | os.PathLike[str]) -> GGUF:
    """Open a GGUF file.

    >>> import tempfile, gguf, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = gguf.GGUFWriter(f"{folder}/m.gguf", "gpt2")
    ...     writer.add_tensor("w", np.ones((2, 3), np.float16))
    ...     writer.write_header_to_file()
    ...     writer.write_kv_data_to_file()
    ...     writer.write_tensors_to_file()
    ...     writer.close()
    ...     with open_gguf(f"{folder}/m.gguf") as source:
    ...         source.fields["general.architecture"], source.read("w").shape
    ('gpt2', (2, 3))

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not a GGUF file, a damaged one, or the gguf package is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        importlib.import_module("gguf")
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs the gguf package; pip install 'jaxformer[hf]'"
        ) from error
    return GGUF(path)


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"
