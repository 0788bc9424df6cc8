"""The interface of all readers of weights: tensors by name, listed from the headers and read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

FLOATS = tuple(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))
"""The dtypes that can be read. Tensors of other dtypes are listed as void and cannot be read."""


class Tensor(NamedTuple):
    """A tensor in a file: the shape and dtype that `read` returns, and the file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path


@runtime_checkable
class Source(Protocol):
    """Tensors by name in one or more files, which stay open until the `with` block ends.

    `path` is the folder or file that was opened; `tensors` is known from the headers.
    """

    path: Path
    tensors: Mapping[str, Tensor]

    def read(self, name: str) -> np.ndarray:
        """Read one tensor from its file; nothing is cached.

        Raises:
            ValueError: an unknown tensor, a tensor that is not floating-point, or a closed source.
        """
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return `read(name)[start:stop]` without holding the rest of the tensor in memory.

        Raises:
            ValueError: as in `read`, or rows outside the tensor.
        """
        ...

    def __enter__(self) -> "Source": ...

    def __exit__(self, *error: object) -> None: ...


def pick(source: Source, name: str, *, is_open: bool) -> Tensor:
    """Return a tensor's description; refuse one that cannot be read."""
    if not is_open:
        raise ValueError(f"{source.path} is closed; read {name!r} inside the `with` block")
    tensor = source.tensors.get(name)
    if tensor is None:
        raise ValueError(f"{source.path} holds no tensor {name!r}; .tensors lists those it holds")
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{tensor.file} holds {name!r} in an unsupported dtype; jaxformer reads floats of 16, 32 and 64 bits"
        )
    return tensor


def pick_rows(source: Source, name: str, start: int, stop: int, *, is_open: bool) -> Tensor:
    """Return a tensor's description; refuse rows that it does not have."""
    tensor = pick(source, name, is_open=is_open)
    if not tensor.shape or not 0 <= start <= stop <= tensor.shape[0]:
        repair = (
            f"choose 0 <= start <= stop <= {tensor.shape[0]}"
            if tensor.shape
            else "read it with `read`"
        )
        raise ValueError(
            f"{tensor.file} holds {name!r} of shape {list(tensor.shape)}, which has no rows {start} to {stop}; {repair}"
        )
    return tensor


def copy_checked(part: np.ndarray, into: np.ndarray, what: str) -> None:
    """Copy numbers into an array that may have another dtype, and refuse overflow.

    Args:
        part: the numbers.
        into: the array to fill.
        what: the beginning of the error message, such as "FILE holds NAME".

    Raises:
        ValueError: a finite number would become infinite.
    """
    with np.errstate(over="ignore"):  # overflow is reported below, with the tensor's name
        np.copyto(into, part, casting="unsafe")
    if ml_dtypes.finfo(into.dtype).max >= ml_dtypes.finfo(part.dtype).max:
        return
    lost = ~np.isfinite(into)
    if lost.any() and np.isfinite(part[lost]).any():
        raise ValueError(f"{what} with numbers that overflow {into.dtype}; choose another dtype")


def unreadable(path: Path, kind: str, reason: object) -> ValueError:
    """Return the error for a file that is damaged or is not of this kind."""
    with path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            return ValueError(f"{path} is a git-lfs pointer to a {kind}; run `git lfs pull` first")
    return ValueError(f"{path} is not a {kind}, or is truncated or damaged: {reason}")
