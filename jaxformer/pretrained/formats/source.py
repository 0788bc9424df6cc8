"""What each reader of weights gives: tensors by name, known from the headers, read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

FLOATS = tuple(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))
"""The dtypes that weights have; tensors of another are listed, as void, and cannot be read."""


class Tensor(NamedTuple):
    """A tensor that a file holds: the shape and dtype that `read` gives it, and its file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path


@runtime_checkable
class Source(Protocol):
    """Tensors by name in one or several files, open until the `with` block ends.

    `path` is the folder or file that was asked for; `tensors` is known without reading any of their data.
    """

    path: Path
    tensors: Mapping[str, Tensor]

    def read(self, name: str) -> np.ndarray:
        """One tensor, read afresh: nothing but the returned array stays in memory.

        Raises:
            ValueError: no such tensor, or one that is not of floats; or the source was closed.
        """
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """What `read(name)[start:stop]` is, without the rest of the tensor in memory.

        Raises:
            ValueError: as `read`, and where the tensor has no such rows.
        """
        ...

    def __enter__(self) -> "Source": ...

    def __exit__(self, *error: object) -> None: ...


def pick(source: Source, name: str, *, is_open: bool) -> Tensor:
    """The tensor that is asked for, if it is there to be read."""
    if not is_open:
        raise ValueError(f"{source.path} is closed; read {name!r} inside the `with` block")
    tensor = source.tensors.get(name)
    if tensor is None:
        raise ValueError(f"{source.path} holds no tensor {name!r}; .tensors lists those it holds")
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{tensor.file} holds {name!r} in a dtype that is not read; weights are floats of 16, 32 or 64 bits"
        )
    return tensor


def pick_rows(source: Source, name: str, start: int, stop: int, *, is_open: bool) -> Tensor:
    """The tensor whose rows are asked for, if it has them."""
    tensor = pick(source, name, is_open=is_open)
    if not tensor.shape or not 0 <= start <= stop <= tensor.shape[0]:
        repair = f"0 <= start <= stop <= {tensor.shape[0]}" if tensor.shape else "the whole of it"
        raise ValueError(
            f"{tensor.file} holds {name!r} of shape {list(tensor.shape)}, without rows {start} to "
            f"{stop}; ask for {repair}"
        )
    return tensor


def copy_checked(part: np.ndarray, into: np.ndarray, what: str) -> None:
    """Copy numbers into an array of perhaps another dtype, if that has room for each of them.

    Raises:
        ValueError: a finite number would become infinite; it begins with `what`, as "FILE holds NAME".
    """
    with np.errstate(over="ignore"):  # said below, with the tensor's name
        np.copyto(into, part, casting="unsafe")
    if ml_dtypes.finfo(into.dtype).max >= ml_dtypes.finfo(part.dtype).max:
        return
    lost = ~np.isfinite(into)
    if lost.any() and np.isfinite(part[lost]).any():
        raise ValueError(
            f"{what} with numbers that {into.dtype} has no room for; choose another dtype"
        )


def unreadable(path: Path, kind: str, reason: object) -> ValueError:
    """The error of a file that is not what its name says."""
    with path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            return ValueError(f"{path} is a git-lfs pointer to a {kind}; run `git lfs pull` first")
    return ValueError(f"{path} is no {kind}, or was cut short or damaged: {reason}")
