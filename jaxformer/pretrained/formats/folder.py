"""Reader of a folder of weights written by Hugging Face's libraries: one file, or shards with an index."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxformer.pretrained.formats.pytorch_file import Pickled
from jaxformer.pretrained.formats.safetensors_file import Safetensors
from jaxformer.pretrained.formats.source import Source, Tensor
from jaxformer.pretrained.json_io import read_object

FORMS: dict[str, Callable[[Path], Source]] = {
    "model.safetensors": Safetensors,
    "model.safetensors.index.json": Safetensors,
    "pytorch_model.bin": Pickled,
    "pytorch_model.bin.index.json": Pickled,
}
"""The files to search for, in order of preference, and the reader of each format."""


def open_folder(folder: str | os.PathLike[str]) -> Source:
    """Open the weights in a folder. Safetensors are preferred to pickles, and a single file to shards.

    >>> import tempfile, numpy as np
    >>> from safetensors.numpy import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"w": np.ones((2, 3), np.float16)}, f"{folder}/model.safetensors")
    ...     with open_folder(folder) as source:
    ...         source.tensors["w"].shape, source.read("w").sum()
    ((2, 3), np.float16(6.0))

    Raises:
        FileNotFoundError: the folder holds no weights, or only sets with missing shards.
        ValueError: a damaged file, or an index that its shards contradict.
    """
    folder = Path(folder)
    missing = None
    for name, opener in FORMS.items():
        if not (folder / name).is_file():
            continue
        try:
            return Folder(folder, name, opener)
        except FileNotFoundError as error:  # a missing shard: try the next format
            missing = missing or error
    raise missing or FileNotFoundError(
        f"{folder} holds no weights: expected {', '.join(list(FORMS)[:-1])} or {list(FORMS)[-1]}"
    )


class Folder:
    """One file or set of shards as a Source."""

    path: Path
    tensors: Mapping[str, Tensor]

    def __init__(self, folder: Path, name: str, opener: Callable[[Path], Source]) -> None:
        self.path = folder
        self._source: dict[str, Source] = {}
        with contextlib.ExitStack() as stack:  # if one file is refused, the others are closed
            if name.endswith(".json"):
                index = read_index(folder / name)
                for shard in sorted(set(index.values())):
                    source = stack.enter_context(opener(folder / shard))
                    check_shard(folder / name, index, shard, source.tensors)
                    self._source.update(dict.fromkeys(source.tensors, source))
            else:
                source = stack.enter_context(opener(folder / name))
                self._source = dict.fromkeys(source.tensors, source)
            self._files = stack.pop_all()
        self.tensors = {name: source.tensors[name] for name, source in self._source.items()}

    def read(self, name: str) -> np.ndarray:
        """Read one tensor from its file."""
        return self._holder(name).read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows of a tensor from its file."""
        return self._holder(name).read_rows(name, start, stop)

    def _holder(self, name: str) -> Source:
        source = self._source.get(name)
        if source is None:
            raise ValueError(f"{self.path} holds no tensor {name!r}; .tensors lists those it holds")
        return source

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()


def read_index(path: Path) -> dict[str, str]:
    """Return each tensor's shard, a file in the index's folder.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a malformed index, or a shard in another folder.
    """
    index = read_object(path)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f'{path} has no "weight_map" from tensor names to files')
    beside = {file.name for file in path.parent.iterdir() if file.is_file()}
    for name, shard in shards.items():
        if (
            not isinstance(shard, str)
            or not shard
            or {*"/\\:\0"} & {*shard}
            or shard in (".", "..")
        ):
            raise ValueError(
                f"{path} places {name!r} in {shard!r}; expected the name of a file in the same folder"
            )
    if lost := set(shards.values()) - beside:
        raise FileNotFoundError(
            f"{path} names the shard {min(lost)!r}, which is not in the same folder"
        )
    return shards


def check_shard(
    index_path: Path, index: Mapping[str, str], shard: str, held: Mapping[str, Tensor]
) -> None:
    """Refuse a shard that holds more or fewer tensors than the index places in it."""
    placed = {name for name, file in index.items() if file == shard}
    if lost := placed - held.keys():
        raise ValueError(f"{index_path} places {min(lost)!r} in {shard!r}, which does not hold it")
    if extra := held.keys() - placed:
        name = min(extra)
        place = f"in {index[name]!r}" if name in index else "in no shard"
        raise ValueError(
            f"{index_path.parent / shard} holds {name!r}, but {index_path} places it {place}"
        )
