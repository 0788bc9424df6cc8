"""A path that does not exist locally is fetched from the Hugging Face hub: only the files that are read."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from jaxformer import Characters, load, load_config, save
from jaxformer.pretrained.hub import Part, fetch
from jaxformer.pretrained.loading import load_tokenizer
from tests.helpers.errors import raises
from tests.helpers.families import golden
from tests.helpers.models import SEED, random_params, same
from tests.helpers.runs import ROOT


class Hub:
    """A fake `huggingface_hub` with one repository: it copies the files of `folder`, and empty ones, to `cache`."""

    def __init__(self, cache: Path, folder: Path | None = None, *more: str):
        self.cache, self.folder = cache, folder
        self.files = [path.name for path in folder.iterdir()] if folder else []
        self.files += more

    def snapshot_download(
        self, name: str, *, allow_patterns: list[str], ignore_patterns: str
    ) -> str:
        self.cache.mkdir(exist_ok=True)
        for file in self.files:
            wanted = any(fnmatch(file, pattern) for pattern in allow_patterns)
            if wanted and not fnmatch(file, ignore_patterns):
                own = (self.folder or Path()) / file
                (self.cache / file).write_bytes(own.read_bytes() if own.is_file() else b"")
        return str(self.cache)

    def fetched(self) -> set[str]:
        return {path.name for path in self.cache.iterdir()}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], Any]:
    """Replace `huggingface_hub`, in an empty working directory."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def put(library: Any) -> Any:
        monkeypatch.setitem(sys.modules, "huggingface_hub", library)
        return library

    return put


def test_a_path_that_does_not_exist_is_fetched_from_the_hub(install, tmp_path: Path):
    golden("gpt2-plain").write(tmp_path / "gpt2")
    hub = install(Hub(tmp_path / "cache", tmp_path / "gpt2"))
    for name in ("gpt2", "openai-community/gpt2"):
        assert load_config(name) == load_config(tmp_path / "gpt2")
        assert load_tokenizer(name) is None
        assert hub.fetched() == {"config.json"}
    assert load("gpt2").config == load_config("gpt2")
    assert hub.fetched() == {"config.json", "model.safetensors"}


def test_a_field_of_a_model_in_the_hub_can_be_ignored(install, tmp_path: Path):
    record = golden("gpt2-plain")
    record._replace(config=record.config | {"sinks": 4}).write(tmp_path / "gpt2")
    install(Hub(tmp_path / "cache", tmp_path / "gpt2"))
    for read in (load, load_config):
        with raises(ValueError, "sinks=4", 'ignore=("sinks",)'):
            read("gpt2")
    assert load("gpt2", ignore=("sinks",)).config == load_config("gpt2", ignore=("sinks",))


SIDE = {"config.json", "tokenizer.json", "merges.txt"}
REPOSITORIES = {
    "one file": (
        ["pytorch_model.bin", "onnx/model.safetensors", "model.fp16.safetensors"], {"model.safetensors"},
    ),
    "shards": (
        ["consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin", "flax_model.msgpack"],
        {"model.safetensors.index.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"},
    ),
    "a pickle": (["adapter.safetensors", "training_args.bin"], {"pytorch_model.bin"}),
    "pickled shards": (
        ["original/pytorch_model-1-of-1.bin"], {"pytorch_model.bin.index.json", "pytorch_model-1-of-1.bin"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REPOSITORIES)
def test_only_the_files_that_are_read_are_fetched(what: str, install, tmp_path: Path):
    others, weights = REPOSITORIES[what]
    files = [*others, *weights, *SIDE, "README.md", "onnx/config.json"]
    parts: dict[Part, set[str]] = {
        "a model": SIDE | weights, "a tokenizer": SIDE, "a config": {"config.json"},
    }  # fmt: skip
    for part, wanted in parts.items():
        hub = install(Hub(tmp_path / part, None, *files))
        assert fetch("a/b", part) == tmp_path / part
        assert hub.fetched() == wanted


def test_a_jaxformer_checkpoint_in_the_hub_is_loaded(install, tmp_path: Path):
    save(tmp_path / "saved", random_params(SEED), SEED, Characters.of("abc"))
    hub = install(Hub(tmp_path / "cache", tmp_path / "saved", "other.safetensors"))
    same(load("a/b").params, random_params(SEED))
    assert hub.fetched() == {path.name for path in (tmp_path / "saved").iterdir()}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["a-Q4.gguf"], ("model.json", "config.json", "hf download a/b")),
        (["config.json", "tf_model.h5"], ("safetensors", "bin")),
    ],
)
def test_a_repository_without_a_readable_model_is_an_error_with_a_repair(
    files: list[str], named: Any, install, tmp_path: Path
):
    install(Hub(tmp_path / "cache", None, *files))
    with raises(FileNotFoundError, "a/b", *named):
        load("a/b")


def test_a_hub_that_cannot_be_reached_is_an_error_of_one_line(install):
    class Unreachable:
        def snapshot_download(self, name: str, **options: Any) -> str:
            raise ConnectionError("no network\nand much more")

    install(Unreachable())
    for read in (load, load_config, load_tokenizer):
        with raises(FileNotFoundError, "gpt2", "ConnectionError", "no network") as caught:
            read("gpt2")
        assert "\n" not in str(caught.value)
    install(None)
    with raises(FileNotFoundError, "gpt2", "pip install 'jaxformer[hf]'"):
        load("gpt2")
    for path in ("no/such/folder", "/no/such", "lost.gguf", "../gpt2 ", ""):
        with pytest.raises(FileNotFoundError):
            load(path)


@pytest.mark.processes
@pytest.mark.peers
@pytest.mark.parametrize("cached", [False, True])
def test_offline_huggingface_hub_returns_within_two_seconds(cached: bool, tmp_path: Path):
    assert importlib.util.find_spec("huggingface_hub")
    if cached:
        home = tmp_path / "hub" / "models--gpt2"
        golden("gpt2-plain").write(home / "snapshots" / "1")
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("1")
    code = (
        "import time, jaxformer, huggingface_hub; start = time.perf_counter()\n"
        "try: print(len(jaxformer.load('gpt2')))\n"
        "except FileNotFoundError as error: print(error)\n"
        "print(time.perf_counter() - start)"
    )
    nowhere = {"HF_ENDPOINT": "http://hub.invalid", "HF_HOME": str(tmp_path)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | nowhere, cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed, seconds = out.stdout.splitlines()
    assert (printed == "3") == cached
    assert cached or "gpt2" in printed
    assert float(seconds) < 2
