"""A file of `torch.save`: a pickle, of which only plain tensors are read and nothing is run."""
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
"""The first bytes of what `torch.save` has written since PyTorch 1.6; older files cannot be mapped."""


class Pickled:
    """One PyTorch file as a Source.

    A file from before PyTorch 1.6 is held in memory as a whole; a newer one is mapped, and its data are
    read when they are asked for.
    """

    path: Path
    tensors: Mapping[str, Tensor]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = _load(path)
        self.tensors = {
            name: Tensor(tuple(kept.shape), _dtype(kept), path) for name, kept in self._kept.items()
        }
        self._open = True

    def read(self, name: str) -> np.ndarray:
        """One tensor, copied out of the file."""
        tensor = pick(self, name, is_open=self._open)
        return _copied(self._kept[name], tensor.dtype)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor, copied out of the file."""
        tensor = pick_rows(self, name, start, stop, is_open=self._open)
        return _copied(self._kept[name][start:stop], tensor.dtype)

    def __enter__(self) -> "Pickled":
        return self

    def __exit__(self, *error: object) -> None:
        self._open = False
        self._kept = {}


def _copied(kept: Any, dtype: np.dtype) -> np.ndarray:
    kept = kept.detach()
    if dtype == ml_dtypes.bfloat16:  # torch gives numpy no bfloat16: pass its bits
        import torch

        kept = kept.view(torch.int16)
    return np.array(kept.numpy(), order="C").view(dtype)


def _load(path: Path) -> dict[str, Any]:
    """The file's torch tensors by name, all of them plain: dense, on the CPU, whole in their storage."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs PyTorch; pip install torch, or convert the file to safetensors"
        ) from error
    with path.open("rb") as file:
        mapped = file.read(len(ZIP)) == ZIP
    try:
        with warnings.catch_warnings(action="ignore"):  # of old formats, to those who wrote them
            held = torch.load(path, weights_only=True, mmap=mapped, map_location="cpu")
    except (
        Exception
    ) as error:  # torch has no type for a damaged file: whatever fails first is raised
        raise unreadable(path, "PyTorch file of plain tensors", _reason(error)) from error
    if not isinstance(held, dict):
        raise ValueError(
            f"{path} holds a {type(held).__name__}; expected a dict of tensors by name"
        )
    for name, value in held.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} holds the key {name!r}; expected the names of tensors")
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path} holds {name!r}, a {type(value).__name__}; expected a tensor")
        if fault := _fault(value):
            raise ValueError(f"{path} holds {name!r}, {fault}; expected a plain tensor")
    return dict(held)


def _reason(error: Exception) -> str:
    """Torch's reason without its advice, which is to run what the file holds."""
    text = str(error)
    if asked := re.search(r"GLOBAL (\S+)", text):
        return f"it asks for {asked[1]}, which is no part of a tensor; nothing in it was run"
    text = text.removeprefix("Weights only load failed. ").rpartition("WeightsUnpickler error:")[2]
    first = text.strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__} {first}; nothing in it was run"


def _fault(tensor: Any) -> str | None:
    import torch

    if tensor.layout is not torch.strided or tensor.is_nested:
        return "a sparse or nested tensor"
    if tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_neg():
        return "a tensor without data of its own"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of shape {list(tensor.shape)}, with more elements than were stored"
    return None


def _dtype(tensor: Any) -> np.dtype:
    """The numpy dtype of a torch tensor; void where it is none of `FLOATS`."""
    names = {f"torch.{dtype}": dtype for dtype in FLOATS}
    return names.get(str(tensor.dtype), np.dtype(np.void))
