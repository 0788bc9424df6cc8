"""Files of weights to read back: each form as the tools of its users write it."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxformer.pretrained.formats import Source, open_folder, open_gguf

Arrays = Mapping[str, np.ndarray]


def bits(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    """Every bit at random: NaNs with payloads, infinities and denormals are among the floats."""
    dtype, count = np.dtype(dtype), int(np.prod(shape))
    data = np.random.default_rng(seed).bytes(count * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape)


def reopen(folder: Path) -> Source:
    """The folder's weights, or its one GGUF file."""
    path = folder / "m.gguf"
    return open_gguf(path) if path.exists() else open_folder(folder)


def to_torch(array: np.ndarray) -> Any:
    torch = pytest.importorskip("torch")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def write_safe(folder: Path, arrays: Arrays, name: str = "model.safetensors") -> None:
    save_file(dict(arrays), folder / name)


def write_bin(
    folder: Path, arrays: Arrays, name: str = "pytorch_model.bin", zipped: bool = True
) -> None:
    torch = pytest.importorskip("torch")
    held = {name: to_torch(array) for name, array in arrays.items()}
    torch.save(held, folder / name, _use_new_zipfile_serialization=zipped)


def write_old_bin(folder: Path, arrays: Arrays) -> None:
    write_bin(folder, arrays, zipped=False)


def sharded(write: Callable[..., None], stem: str, end: str) -> Callable[[Path, Arrays], None]:
    """The same form in two shards, the tensors dealt out in turn, and their index."""

    def write_shards(folder: Path, arrays: Arrays) -> None:
        names = list(arrays)
        shards = {f"{stem}-0000{i + 1}-of-00002.{end}": names[i::2] for i in range(2)}
        for shard, part in shards.items():
            write(folder, {name: arrays[name] for name in part}, shard)
        index = {name: shard for shard, part in shards.items() for name in part}
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
        (folder / f"{stem}.{end}.index.json").write_text(text)

    return write_shards


def write_gguf(
    folder: Path,
    arrays: Arrays,
    fields: Mapping[str, Any] = {},
    raw: Mapping[str, tuple[np.ndarray, Any]] = {},
) -> None:
    """A GGUF file of arrays as they are and of raw bytes with their types."""
    writer = gguf.GGUFWriter(folder / "m.gguf", "test")
    kinds = {bool: "bool", int: "int32", float: "float64", str: "string", list: "array"}
    for key, value in fields.items():
        getattr(writer, f"add_{kinds[type(value)]}")(key, value)
    for name, array in arrays.items():
        if array.dtype == ml_dtypes.bfloat16:
            bf16 = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, array.view(np.uint8), raw_dtype=bf16)
        else:
            writer.add_tensor(name, array)
    for name, (data, kind) in raw.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


HUGGING_FACE: dict[str, Callable[[Path, Arrays], None]] = {
    "safetensors": write_safe,
    "safetensors in shards": sharded(write_safe, "model", "safetensors"),
    "bin": write_bin,
    "bin of old": write_old_bin,
    "bin in shards": sharded(write_bin, "pytorch_model", "bin"),
}
FORMS = {**HUGGING_FACE, "gguf": write_gguf}
"""Each form's writer of named arrays into a folder."""


def forms(names: Iterable[str] = tuple(FORMS)) -> list[Any]:
    """The forms as parameters of a test; those of PyTorch are marked `peers`."""
    return [pytest.param(n, marks=pytest.mark.peers) if "bin" in n else n for n in names]


every_form = pytest.mark.parametrize("form", forms())
