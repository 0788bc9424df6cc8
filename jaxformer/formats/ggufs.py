"""A GGUF file, llama.cpp's format: metadata and tensors of any of its types, quantised ones as float32."""

import contextlib
import importlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.formats.gguf_header import PLAIN, read_header
from jaxformer.formats.source import Tensor, pick

AT_ONCE = 2**20
"""Elements that are dequantised at a time: what is in memory beside the tensor that is read."""


class GGUF:
    """One GGUF file as a Source, with its metadata in `fields`, as plain values."""

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
        """One tensor, dequantised if it is of blocks."""
        tensor = pick(self, name, is_open=not self._file.closed)
        place = self._places[name]
        if place.kind.name in PLAIN:
            return self._bytes(place.start, place.n_bytes).view(tensor.dtype).reshape(tensor.shape)
        values = np.empty(math.prod(tensor.shape), np.float32)
        step = max(AT_ONCE // place.block, 1)
        n_blocks = place.n_bytes // place.block_bytes
        for first in range(0, n_blocks, step):
            last = min(first + step, n_blocks)
            start = place.start + first * place.block_bytes
            blocks = self._bytes(start, (last - first) * place.block_bytes)
            values[first * place.block : last * place.block] = self._dequantised(name, blocks)
        return values.reshape(tensor.shape)

    def _bytes(self, start: int, count: int) -> np.ndarray:
        data = np.empty(count, np.uint8)
        self._file.seek(start)
        if self._file.readinto(data) != count:
            raise ValueError(f"{self.path} was cut short since it was opened")
        return data

    def _dequantised(self, name: str, blocks: np.ndarray) -> np.ndarray:
        from gguf.quants import dequantize

        place = self._places[name]
        try:
            with np.errstate(all="ignore"):  # a scale that is no number gives values that are none
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
    """The tensors and metadata of a GGUF file.

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
        FileNotFoundError: no such file.
        ValueError: no GGUF file, or a damaged one; or the gguf package is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        importlib.import_module("gguf")
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs the gguf package; pip install 'jaxformer[hf]'"
        ) from error
    return GGUF(path)
