"""Readers of weights return what was written, in every format, and read no more than they need."""

import sys
import tracemalloc
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxformer.pretrained.formats import Source, Tensor, gguf_file, open_folder, open_gguf
from jaxformer.pretrained.formats.source import copy_checked
from tests.helpers.errors import raises
from tests.helpers.weightfiles import (
    FORMS,
    HUGGING_FACE,
    bits,
    every_form,
    forms,
    reopen,
    write_gguf,
)

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
BLOCKS = [kind for kind, (block, _) in sorted(gguf.GGML_QUANT_SIZES.items()) if block > 1]

READ_IN_PLACE = forms(sorted({*FORMS} - {"bin of old"}))
MAPS = Path("/proc/self/maps")


@pytest.mark.parametrize("dtype", DTYPES)
@every_form
def test_what_was_written_is_read_bit_for_bit(tmp_path: Path, form: str, dtype):
    shapes = [(5,), (2, 3, 4), (1, 64)] + ([(), (0, 3)] if form in HUGGING_FACE else [])
    written = {f"w{i}": bits(shape, dtype, i) for i, shape in enumerate(shapes)}
    FORMS[form](tmp_path, written)
    with reopen(tmp_path) as source:
        assert isinstance(source, Source)
        assert source.tensors.keys() == written.keys()
        for name, array in written.items():
            again, tensor = source.read(name), source.tensors[name]
            assert (again.shape, again.dtype) == (array.shape, array.dtype) == tensor[:2]
            assert again.tobytes() == array.tobytes()
            assert tensor.file.is_file()
            again[...] = 0  # a copy: writing to it changes neither the file nor the next read
            assert source.read(name).tobytes() == array.tobytes()


ROWS = [(0, 0), (0, 1), (1, 3), (3, 5), (0, 5), (4, 5), (5, 5)]
"""Starts and stops in a tensor of five rows."""


@pytest.mark.parametrize("dtype", DTYPES)
@every_form
def test_read_rows_equals_a_slice_of_read(tmp_path: Path, form: str, dtype):
    written = {f"w{i}": bits((5, *more), dtype, i) for i, more in enumerate([(), (3,), (2, 3)])}
    FORMS[form](tmp_path, written)
    with reopen(tmp_path) as source:
        for name, array in written.items():
            for start, stop in ROWS:
                rows = source.read_rows(name, start, stop)
                assert (rows.shape, rows.dtype) == (array[start:stop].shape, array.dtype)
                assert rows.tobytes() == array[start:stop].tobytes()
                rows[...] = 0  # a copy
            assert source.read(name).tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_blocks_and_their_rows_are_dequantised_as_the_gguf_package_does(
    tmp_path: Path, monkeypatch, kind
):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = {
        "w": (bits((5, 3 * size), np.uint8, kind), kind),
        "v": (bits((2 * size,), np.uint8, kind), kind),
    }
    write_gguf(tmp_path, {}, raw=raw)
    monkeypatch.setattr(gguf_file, "AT_ONCE", 2 * block)  # so that w takes several steps
    with reopen(tmp_path) as source:
        assert source.tensors["w"] == Tensor((5, 3 * block), np.dtype("f4"), tmp_path / "m.gguf")
        try:
            with np.errstate(all="ignore"):
                expected = {n: gguf.quants.dequantize(data, kind) for n, (data, _) in raw.items()}
        except NotImplementedError:
            for read in (source.read, lambda name: source.read_rows(name, 0, 1)):
                with raises(ValueError, tmp_path / "m.gguf", "'w'", kind.name):
                    read("w")
            return
        rows = {"w": ROWS, "v": [(0, 1), (block - 1, block + 1), (3, 2 * block), (2 * block,) * 2]}
        for name, whole in expected.items():
            np.testing.assert_array_equal(source.read(name), whole)
            for start, stop in rows[name]:
                found = source.read_rows(name, start, stop)
                np.testing.assert_array_equal(found, whole[start:stop])


@every_form
def test_integers_unknown_names_rows_outside_and_closed_sources_are_refused(
    tmp_path: Path, form: str
):
    FORMS[form](tmp_path, {"w": np.ones((5, 2), np.float32), "n": np.ones(5, np.int64)})
    source = reopen(tmp_path)
    reads = (source.read, lambda name: source.read_rows(name, 0, 1))
    with source:
        assert source.tensors["n"].shape == (5,)
        for read in reads:
            with raises(ValueError, tmp_path, "'n'", 16, 32, 64):
                read("n")
            with raises(ValueError, tmp_path, "'x'", ".tensors"):
                read("x")
        for start, stop in [(-1, 2), (0, 6), (6, 6), (3, 2), (-2, -1)]:
            with raises(ValueError, source.tensors["w"].file, "'w'", [5, 2], start, stop):
                source.read_rows("w", start, stop)
    for read in reads:
        with raises(ValueError, tmp_path, "'w'", "`with`"):
            read("w")
    if MAPS.exists():  # the files are unmapped, although the source still exists
        assert str(tmp_path) not in MAPS.read_text()


def test_a_scalar_has_no_rows(tmp_path: Path):
    save_file({"x": np.array(1.0)}, tmp_path / "model.safetensors")
    source = open_folder(tmp_path)
    with source, raises(ValueError, tmp_path / "model.safetensors", "'x'", []):
        source.read_rows("x", 0, 0)


def test_copying_to_a_narrower_dtype_refuses_overflow():
    into = np.zeros(3, np.float16)
    for part in ([1, np.inf, np.nan], [-np.inf, 65504, 65519]):
        copy_checked(np.array(part, np.float32), into, "m holds w")
        np.testing.assert_array_equal(into, np.array(part, np.float32).astype(np.float16))
    for part in ([1, 65520, 2], [np.inf, 1e6, 1], [np.nan, 1, -1e6]):
        with raises(ValueError, "m holds w", "float16"):
            copy_checked(np.array(part, np.float32), into, "m holds w")
    with raises(ValueError, "m holds w", "bfloat16"):
        copy_checked(np.full(3, 3.4e38, np.float32), into.view(ml_dtypes.bfloat16), "m holds w")


def test_gguf_metadata_are_plain_python_values(tmp_path: Path):
    fields = {"n": 3, "x": 1.5, "yes": True, "text": "añ\n", "list": [1, -2], "words": ["", "b"]}
    write_gguf(tmp_path, {}, fields)
    with open_gguf(tmp_path / "m.gguf") as source:
        read = dict(source.fields)
    assert read == {"general.architecture": "test", **fields}
    assert [type(read[name]) for name in fields] == [int, float, bool, str, list, list]


@pytest.fixture
def traced():
    tracemalloc.start()
    yield tracemalloc
    tracemalloc.stop()


@pytest.mark.parametrize("form", READ_IN_PLACE)
def test_opening_reads_no_data_and_reading_keeps_none(tmp_path: Path, traced, form: str):
    written = {f"w{i}": np.full((256, 1024), i, np.float32) for i in range(1, 5)}
    FORMS[form](tmp_path, written)
    size = written["w1"].nbytes
    traced.reset_peak()
    before = traced.get_traced_memory()[0]
    with reopen(tmp_path) as source:
        assert traced.get_traced_memory()[1] < before + size / 4
        for name, array in written.items():  # change the file after it was opened
            file = source.tensors[name].file
            place = file.read_bytes().index(array.tobytes())
            with file.open("r+b") as same:
                same.seek(place)
                same.write((array + 9).tobytes())
        traced.reset_peak()
        for name in written:  # except the first numbers, which the buffer for the header may hold
            assert source.read(name)[4:].min() == int(name[1:]) + 9
        assert traced.get_traced_memory()[1] < before + 1.5 * size


@pytest.mark.parametrize("form", READ_IN_PLACE)
def test_reading_rows_does_not_read_the_rest(tmp_path: Path, traced, form: str):
    FORMS[form](tmp_path, {"w": np.ones((1024, 1024), np.float32)})
    with reopen(tmp_path) as source:
        traced.reset_peak()
        before = traced.get_traced_memory()[0]
        source.read_rows("w", 1000, 1024)
        assert traced.get_traced_memory()[1] < before + 2**19


def test_tensors_that_are_not_floats_are_listed(tmp_path: Path):
    save_file({"mask": np.ones((2, 2), bool), "w": np.ones(1)}, tmp_path / "model.safetensors")
    with open_folder(tmp_path) as source:
        assert source.tensors["mask"].shape == (2, 2)
        assert source.read("w") == 1


@pytest.mark.peers
def test_the_first_complete_format_is_opened(tmp_path: Path):
    pytest.importorskip("torch")
    order = ["safetensors", "safetensors in shards", "bin", "bin in shards"]
    for value, form in reversed(list(enumerate(order))):
        FORMS[form](tmp_path, {"w": np.full(2, value, np.float32), "v": np.ones(1)})
        with open_folder(tmp_path) as source:
            assert source.read("w")[0] == value
    (tmp_path / "model.safetensors").unlink()
    lost = next(tmp_path.glob("model-*.safetensors"))
    lost.unlink()  # a missing shard: the next format is opened
    with open_folder(tmp_path) as source:
        assert source.read("w")[0] == 2
    for path in tmp_path.glob("pytorch_model*"):
        path.unlink()
    with raises(FileNotFoundError, tmp_path / "model.safetensors.index.json", lost.name):
        open_folder(tmp_path)


def test_a_folder_without_weights_is_an_error_that_lists_the_expected_files(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none"):
        with raises(FileNotFoundError, path, "model.safetensors", "pytorch_model.bin"):
            open_folder(path)
        with raises(FileNotFoundError, path):
            open_gguf(path)


@pytest.mark.parametrize(
    ("package", "name", "repair"),
    [
        ("torch", "pytorch_model.bin", "pip install torch"),
        ("gguf", "m.gguf", "pip install 'jaxformer[hf]'"),
    ],
)
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch, package, name, repair):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).touch()
    with raises(ValueError, tmp_path / name, repair):
        reopen(tmp_path)
