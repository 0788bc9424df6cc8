"""What is not here is looked for in the Hugging Face hub: of a repository what is read, and one sentence if not."""

import sys
from pathlib import Path
from typing import Any

import pytest

from jaxformer import Characters, load, load_config, save
from jaxformer.pretrained.hub import choose
from jaxformer.pretrained.load import load_tokenizer
from tests.helpers.errors import raises
from tests.helpers.families import golden
from tests.helpers.models import SEED, random_params, same


class Hub:
    """`huggingface_hub` with one repository; `asked` keeps the files that were asked for."""

    def __init__(self, folder: Path, *more: str):
        self.folder, self.asked = folder, []
        self.files = [path.name for path in folder.iterdir()] if folder.exists() else []
        self.files += more

    def list_repo_files(self, name: str) -> list[str]:
        return self.files

    def snapshot_download(
        self, name: str, *, allow_patterns: list[str] | None = None, local_files_only: bool = False
    ) -> str:
        self.asked.append((name, "cache" if local_files_only else allow_patterns))
        return str(self.folder)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A repository's files; the folder that one is in has none of its name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    golden("gpt2-plain").write(tmp_path / "cache")
    return tmp_path / "cache"


def test_a_path_that_is_not_here_is_looked_for_in_the_hub(
    monkeypatch: pytest.MonkeyPatch, fetched: Path
):
    hub = Hub(fetched)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for name in ("gpt2", "openai-community/gpt2"):
        assert load(name)[0] == load(fetched)[0] == load_config(name)
        assert load_tokenizer(name) is None
        whole = (name, ["config.json", "model.safetensors"])
        assert hub.asked == [whole, (name, ["config.json"]), (name, ["config.json"])]
        hub.asked.clear()


SIDE = ["config.json", "tokenizer.json", "merges.txt"]
REPOSITORIES = {
    "one file": (
        ["pytorch_model.bin", "model.safetensors", "onnx/model.safetensors", "model.fp16.safetensors"],
        ["model.safetensors"],
    ),
    "shards": (
        ["model.safetensors.index.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors",
         "consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin", "flax_model.msgpack"],
        ["model.safetensors.index.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"],
    ),
    "a pickle": (["pytorch_model.bin", "adapter.safetensors", "training_args.bin"], ["pytorch_model.bin"]),
    "pickled shards": (
        ["pytorch_model.bin.index.json", "pytorch_model-1-of-1.bin", "original/pytorch_model-1-of-1.bin"],
        ["pytorch_model.bin.index.json", "pytorch_model-1-of-1.bin"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REPOSITORIES)
def test_of_a_repository_only_what_is_read_is_fetched(what: str):
    files, weights = REPOSITORIES[what]
    files = [*reversed(SIDE), "README.md", "onnx/config.json", *files]
    assert choose("a/b", files, "a model") == SIDE + weights
    assert choose("a/b", files, "a tokenizer") == SIDE
    assert choose("a/b", files, "a config") == SIDE[:1]


def test_a_model_of_ours_in_the_hub(monkeypatch: pytest.MonkeyPatch, fetched: Path, tmp_path: Path):
    save(tmp_path / "ours", SEED, random_params(SEED), Characters.of("abc"))
    hub = Hub(tmp_path / "ours", "other.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    same(load("a/b")[1], random_params(SEED))
    (_, files), *_ = hub.asked
    assert sorted(files) == sorted(path.name for path in (tmp_path / "ours").iterdir())


def test_a_repository_without_a_model_in_a_folder_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, fetched: Path
):
    hub = Hub(fetched.parent / "none", "a-Q4.gguf", "a-Q8.gguf")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for read in (load, load_config):
        with raises(FileNotFoundError, "model.json", "config.json", "hf download a/b a-Q4.gguf"):
            read("a/b")
    hub.files = ["config.json", "a-Q8.gguf"]
    with raises(FileNotFoundError, "hf download a/b a-Q8.gguf"):
        load("a/b")
    hub.files = ["config.json", "tf_model.h5"]
    with raises(FileNotFoundError, "a/b") as caught:
        load("a/b")
    assert "hf download" not in str(caught.value)
    assert hub.asked == []


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch, fetched: Path):
    hub = Hub(fetched)

    def lost(name: str, **options: Any) -> list[str]:
        raise ConnectionError("no network\nand much more")

    def cannot(name: str, **options: Any) -> str:
        raise OSError("not in the cache")

    monkeypatch.setattr(hub, "list_repo_files", lost)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert load("gpt2")[0] == load_config(fetched)  # fetched before
    assert hub.asked == [("gpt2", "cache")]
    monkeypatch.setattr(hub, "snapshot_download", cannot)
    for read in (load, load_config, load_tokenizer):
        with raises(FileNotFoundError, "gpt2", "ConnectionError", "no network") as caught:
            read("gpt2")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(hub, "list_repo_files", lambda name: ["config.json", "model.safetensors"])
    with raises(FileNotFoundError, "gpt2", "OSError", "not in the cache"):
        load("gpt2")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with raises(FileNotFoundError, "gpt2", "pip install 'jaxformer[hf]'"):
        load("gpt2")
    for path in ("no/such/folder", "/no/such", "lost.gguf", "../gpt2 ", ""):
        with pytest.raises(FileNotFoundError):
            load(path)
