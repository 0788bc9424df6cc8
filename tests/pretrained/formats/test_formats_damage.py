"""Damaged files of weights are read as their bytes encode, or are an error that names the file."""

import json
import os
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.pretrained.formats import open_folder, open_gguf
from tests.helpers.damage import write
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.weightfiles import FORMS, forms, reopen, write_gguf

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHTS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones((2, 2), np.float16),
    "n": np.ones(3, np.int64),
}


@pytest.fixture(scope="module", params=forms())
def written(request, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("written")
    if request.param == "gguf":
        q8 = gguf.GGMLQuantizationType.Q8_0
        raw = {"q": (gguf.quants.quantize(np.ones((2, 32), np.float32), q8), q8)}
        write_gguf(folder, WEIGHTS, {"words": ["a", "bc"], "list": [1, 2], "yes": True}, raw)
    else:
        FORMS[request.param](folder, WEIGHTS)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_all(folder: Path) -> None:
    """Read every listed tensor; errors of single tensors must name the folder."""
    with reopen(folder) as source:
        for name, tensor in source.tensors.items():
            try:
                array = source.read(name)
            except ValueError as error:
                assert str(folder) in str(error)
            else:
                assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)


@given(data=st.data())
@examples(50)
def test_any_bytes_give_tensors_or_an_error_that_names_the_file(written, tmp_path: Path, data):
    name = data.draw(st.sampled_from(sorted(written)))
    content = bytearray(written[name])
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:  # headers are at the beginning, a zip file's directory is at the end
        for place in data.draw(st.lists(st.integers(-400, 400), min_size=1, max_size=4)):
            content[place % len(content)] ^= 1 << data.draw(st.integers(0, 7))
    write(tmp_path, written | {name: bytes(content)})
    try:
        read_all(tmp_path)
    except (ValueError, FileNotFoundError) as error:
        assert str(tmp_path) in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([A, B, "a", "b", "..", "", "a\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abn"), inner),
    max_leaves=5,
)


@given(index=JSON | st.fixed_dictionaries({"weight_map": JSON}))
@examples(50)
def test_any_index_agrees_with_its_shards_or_is_refused(tmp_path: Path, index):
    FORMS["safetensors in shards"](tmp_path, WEIGHTS)
    (tmp_path / INDEX).write_text(json.dumps(index))
    try:
        with open_folder(tmp_path) as source:
            assert source.tensors.keys() == index["weight_map"].keys()
            assert source.tensors["a"].file.name == index["weight_map"]["a"]
    except (ValueError, FileNotFoundError) as error:
        assert str(tmp_path) in str(error)


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        (lambda m: m.pop("a"), ValueError, (A, "'a'")),
        (lambda m: m.update(x=A), ValueError, ("'x'", A)),
        (lambda m: m.update(a=B), ValueError, (A, "'a'", B)),
        (lambda m: m.update(a="../" + A), ValueError, ("'a'", f"'../{A}'")),
        (lambda m: m.update(a="/etc/passwd"), ValueError, ("'a'", "'/etc/passwd'")),
        (lambda m: m.update(a="C:x"), ValueError, ("'a'", "'C:x'")),
        (lambda m: m.update(a=3), ValueError, ("'a'", 3)),
        (lambda m: m.update(a="x" * 999), FileNotFoundError, ("x" * 999,)),
        (lambda m: m.clear(), ValueError, ("weight_map",)),
    ],
)
def test_an_index_that_contradicts_its_shards_is_refused(
    tmp_path: Path, change, kind: type[Exception], named: tuple[object, ...]
):
    FORMS["safetensors in shards"](tmp_path, WEIGHTS)
    index = json.loads((tmp_path / INDEX).read_text())
    change(index["weight_map"])
    (tmp_path / INDEX).write_text(json.dumps(index))
    with raises(kind, tmp_path / INDEX, *named):
        open_folder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path):
    FORMS["safetensors in shards"](tmp_path, WEIGHTS)
    FORMS["safetensors"](tmp_path, WEIGHTS)
    (tmp_path / "model.safetensors").rename(tmp_path / A)
    with raises(ValueError, tmp_path / A, "'b'", tmp_path / INDEX, B):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "", "\ufeff{}", "{'a': 1}", '{"weight_map": {"a": "x", "a": "y"}}', "[]"],
)
def test_a_malformed_index_is_refused(tmp_path: Path, text: str):
    (tmp_path / INDEX).write_text(text)
    with raises(ValueError, tmp_path / INDEX):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", pytest.param("pytorch_model.bin", marks=pytest.mark.peers), "m.gguf"],
)
def test_a_git_lfs_pointer_is_an_error_that_names_git_lfs_pull(tmp_path: Path, name: str):
    if name.endswith(".bin"):
        pytest.importorskip("torch")
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with raises(ValueError, tmp_path / name, "git lfs pull"):
        reopen(tmp_path)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def tensor(name: str, shape: list[int], kind: int, start: int) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, start)


def whole(n_tensors: int, n_keys: int, *parts: bytes, version: int = 3) -> bytes:
    """A complete GGUF file: a header of these parts, then 128 bytes of data."""
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(parts)
    return header + bytes(-len(header) % 32 + 128)


W = tensor("w", [8], 0, 0)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"GGML" + whole(0, 0)[4:], ("b'GGML'",)),
        (whole(0, 0, version=1), ("version", 1)),
        (whole(0, 0, version=3 << 24), (3 << 24, "big-endian")),
        (whole(0, 0)[:20], (8, 4)),
        (whole(2**60, 0, W), (2**60,)),
        (whole(0, 2**30), (2**30,)),
        (whole(0, 1, struct.pack("<Q", 2**40)), (2**40,)),
        (whole(0, 1, text(b"\xff"), bytes(8)), ("UTF-8",)),
        (whole(0, 1, text("k"), struct.pack("<I", 13)), ("'k'", 13)),
        (whole(0, 1, text("k"), struct.pack("<IIQ", 9, 9, 1)), ("'k'", 9)),
        (whole(0, 1, text("k"), struct.pack("<IIQ", 9, 4, 2**33)), ("'k'", 2**33)),
        (whole(0, 1, text("k"), struct.pack("<IIQ", 9, 8, 99)), ("'k'", 99)),
        (whole(0, 2, number("k", 1), number("k", 1)), ("'k'",)),
        (whole(0, 1, number("general.alignment", 12)), ("general.alignment=12",)),
        (whole(0, 1, number("split.count", 3)), (3, "llama-gguf-split --merge")),
        (whole(2, 0, W, W), ("'w'",)),
        (whole(2, 0, W, tensor("v", [8], 0, 0)), ("'v'", 96)),
        (whole(1, 0, tensor("w", [8], 0, 8)), ("'w'", 72)),
        (whole(1, 0, tensor("w", [64], 0, 0)), ("'w'", 320, 192)),
        (whole(1, 0, tensor("w", [2**40, 2**40], 0, 0)), ("'w'",)),
        (whole(1, 0, tensor("w", [8], 0, 2**63)), ("'w'", 2**63 + 96, 192)),
        (whole(1, 0, tensor("w", [1] * 5, 0, 0)), ("'w'", 5)),
        (whole(1, 0, tensor("w", [8], 99, 0)), ("'w'", 99)),
        (whole(1, 0, tensor("w", [8], 2, 0)), ("'w'", [8], "Q4_0")),
    ],
)
def test_a_damaged_gguf_header_is_refused_at_once(
    tmp_path: Path, content: bytes, named: tuple[object, ...]
):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    if named[-1] in (2**60, 2**30):  # a count that is too large even for a huge file
        os.truncate(path, 2**34)
    start = time.perf_counter()
    with raises(ValueError, path, *named):
        open_gguf(path)
    assert time.perf_counter() - start < 5


def test_the_undamaged_gguf_file_is_read(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(whole(1, 1, number("k", 7), W))
    with open_gguf(tmp_path / "m.gguf") as source:
        assert source.fields == {"k": 7}
        assert source.read("w").tolist() == [0] * 8
    (tmp_path / "m.gguf").unlink()  # on Windows this fails if the file is still open or mapped
