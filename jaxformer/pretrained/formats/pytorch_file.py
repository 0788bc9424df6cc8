"""Reader of files written by `torch.save`: pickles, from which plain tensors are read without executing code."""
# pyright: reportMissingImports=false

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxformer.pretrained.formats.source import FLOATS, Tensor, pick, pick_rows, unreadable

ZIP = b"PK\x03\x04"
"""The first bytes of files since PyTorch 1.6; older files cannot be memory-mapped."""


class Pickled:
    """One PyTorch file as a Source.

    The file is memory-mapped, so that opening it reads no data; a file older than PyTorch 1.6 is loaded into memory.
    """

    path: Path
    tensors: Mapping[str, Tensor]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped = _load(path)
        self.tensors = {
            name: Tensor(tuple(tensor.shape), _dtype(tensor), path)
            for name, tensor in self._mapped.items()
        }
        self._open = True

    def read(self, name: str) -> np.ndarray:
        """Read one tensor."""
        tensor = pick(self, name, is_open=self._open)
        return _to_numpy(self._mapped[name], tensor.dtype)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows of a tensor."""
        tensor = pick_rows(self, name, start, stop, is_open=self._open)
        return _to_numpy(self._mapped[name][start:stop], tensor.dtype)

    def __enter__(self) -> "Pickled":
        return self

    def __exit__(self, *error: object) -> None:
        self._open = False
        self._mapped = {}


def _to_numpy(tensor: Any, dtype: np.dtype) -> np.ndarray:
    """Return a copy of a torch tensor."""
    tensor = tensor.detach()
    if dtype == ml_dtypes.bfloat16:  # torch cannot convert bfloat16 to numpy: pass its bits
        import torch

        tensor = tensor.view(torch.int16)
    return np.array(tensor.numpy(), order="C").view(dtype)


def _load(path: Path) -> dict[str, Any]:
    """Return the file's torch tensors by name; refuse a file with anything but plain tensors."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs PyTorch; pip install torch, or convert the file to safetensors"
        ) from error
    with path.open("rb") as file:
        mapped = file.read(len(ZIP)) == ZIP
    try:
        with warnings.catch_warnings(action="ignore"):  # about old formats
            held = torch.load(path, weights_only=True, mmap=mapped, map_location="cpu")
    # torch has no exception type for a damaged file
    except Exception as error:
        raise unreadable(path, "PyTorch file of plain tensors", _reason(error)) from error
    if not isinstance(held, dict):
        raise ValueError(
            f"{path} holds a {type(held).__name__}; expected a dict of tensors by name"
        )
    for name, value in held.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} holds the key {name!r}; expected a tensor's name")
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path} holds {name!r}, a {type(value).__name__}; expected a tensor")
        if fault := _fault(value):
            raise ValueError(f"{path} holds {name!r}, {fault}; expected a plain tensor")
    return dict(held)


def _reason(error: Exception) -> str:
    """Return torch's reason without its advice, which is to execute the file."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it contains {found[1]}, which is not part of a tensor; nothing was executed"
    text = text.removeprefix("Weights only load failed. ").rpartition("WeightsUnpickler error:")[2]
    first = text.strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__} {first}; nothing was executed"


def _fault(tensor: Any) -> str | None:
    """Say why a torch tensor is not plain: dense, on the CPU and within its storage; None: it is plain."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_nested:
        return "a sparse or nested tensor"
    if tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_neg():
        return "a tensor without data of its own"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of shape {list(tensor.shape)}, with more elements than its storage holds"
    return None


def _dtype(tensor: Any) -> np.dtype:
    """Return the numpy dtype of a torch tensor; void if it is not in `FLOATS`."""
    names = {f"torch.{dtype}": dtype for dtype in FLOATS}
    return names.get(str(tensor.dtype), np.dtype(np.void))
