"""Reader of safetensors files: a JSON header, then the raw bytes of the tensors."""

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxformer.pretrained.formats.source import Tensor, pick, pick_rows, unreadable

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""The format's names of dtypes."""


class Safetensors:
    """One safetensors file as a Source."""

    path: Path
    tensors: Mapping[str, Tensor]

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = safe_open(path, framework="numpy")
            headers = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise unreadable(path, "safetensors file", error) from error
        self.tensors = {
            name: Tensor(
                tuple(header.get_shape()), np.dtype(DTYPES.get(header.get_dtype(), np.void)), path
            )
            for name, header in headers.items()
        }
        self._open = True

    def read(self, name: str) -> np.ndarray:
        """Read one tensor."""
        from safetensors import SafetensorError

        tensor = pick(self, name, is_open=self._open)
        try:
            return self._file.get_tensor(name)
        except SafetensorError as error:
            raise unreadable(tensor.file, "safetensors file", error) from error

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows of a tensor."""
        from safetensors import SafetensorError

        tensor = pick_rows(self, name, start, stop, is_open=self._open)
        if start == stop:  # safetensors does not take an empty slice
            return np.empty((0, *tensor.shape[1:]), tensor.dtype)
        try:
            return self._file.get_slice(name)[start:stop]
        except SafetensorError as error:
            raise unreadable(tensor.file, "safetensors file", error) from error

    def __enter__(self) -> "Safetensors":
        return self

    def __exit__(self, *error: object) -> None:
        self._open = False
        self._file.__exit__(None, None, None)
