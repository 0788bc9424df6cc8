"""PyTorch's pickles: plain tensors are read, anything else is refused and nothing is executed."""

from pathlib import Path

import ml_dtypes
import pytest

from jaxformer.pretrained.formats import open_folder
from tests.helpers.errors import raises
from tests.helpers.weightfiles import bits, to_torch

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


class Evil:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path: Path, zipped: bool):
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "was-run"
    torch.save({"w": Evil(trace)}, path, _use_new_zipfile_serialization=zipped)
    with raises(ValueError, path):
        open_folder(tmp_path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_pickle_of_anything_but_plain_tensors_is_refused(tmp_path: Path):
    one = torch.ones(1)
    for held, named in [
        ([one], ("list",)),
        ({1: one}, (1,)),
        ({"a": one, "b": {"w": one}}, ("'b'", "dict")),
        ({"a": torch.eye(2).to_sparse()}, ("'a'",)),
        ({"a": torch.ones(2, device="meta")}, ("'a'",)),
        ({"a": one.expand(9)}, ("'a'", "[9]")),
    ]:
        torch.save(held, tmp_path / "pytorch_model.bin")
        with raises(ValueError, tmp_path / "pytorch_model.bin", *named):
            open_folder(tmp_path)


def test_parameters_and_views_are_read_as_tensors(tmp_path: Path):
    array = bits((3, 4), ml_dtypes.bfloat16, 0)
    view = to_torch(array).T
    torch.save({"p": torch.nn.Parameter(view), "row": view[1]}, tmp_path / "pytorch_model.bin")
    with open_folder(tmp_path) as source:
        assert source.read("p").tobytes() == array.T.tobytes()
        assert source.read("row").tobytes() == array.T[1].tobytes()
