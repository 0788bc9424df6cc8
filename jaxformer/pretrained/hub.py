"""Models in Hugging Face's hub: which of a repository's files are fetched, and from where they are read then."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxformer.pretrained.tokenizers.folder import FILES

Part = Literal["a model", "a config", "a tokenizer"]
"""What is wanted of a repository."""

PARAMS = re.compile(r"params-[0-9a-f]{16}\.safetensors")
SHARDS = {
    "model.safetensors.index.json": re.compile(r"(?!consolidated)[^/]*\.safetensors"),
    "pytorch_model.bin.index.json": re.compile(r"pytorch_model[^/]*\.bin"),
}
"""The files that an index may name."""


def fetch(name: str, part: Part) -> Path:
    """The folder in the hub's cache that has this part of a model; without a network, what it had before.

    Raises:
        FileNotFoundError: the hub does not give it, or it is no model that is known by its folder.
    """
    try:
        from huggingface_hub import list_repo_files, snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} is not here; to look for it in Hugging Face's hub: pip install 'jaxformer[hf]'"
        ) from error
    try:
        files = list_repo_files(name)
    except Exception as error:
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except Exception:  # what the hub said tells more
            raise _not_given(name, error) from error
    chosen = choose(name, files, part)
    try:
        return Path(snapshot_download(name, allow_patterns=chosen))
    except Exception as error:
        raise _not_given(name, error) from error


def choose(name: str, files: Sequence[str], part: Part) -> list[str]:
    """Those of a repository's files that this part of its model is read from; none from its folders.

    >>> choose("a/b", ["README.md", "config.json", "pytorch_model.bin", "onnx/model.onnx"], "a model")
    ['config.json', 'pytorch_model.bin']

    Raises:
        FileNotFoundError: there are none.
    """
    config = next((file for file in ("model.json", "config.json") if file in files), None)
    weights = [] if part != "a model" else _weights(files)
    if config is None or (part == "a model" and not weights):
        lack = "model.json or config.json" if config is None else "weights in a form that is read"
        ggufs = [file for file in files if file.endswith(".gguf")]
        repair = (
            f"; download one of its GGUF files and give its path: hf download {name} {ggufs[0]}"
            if ggufs
            else ""
        )
        raise FileNotFoundError(f"{name} in Hugging Face's hub has no {lack}{repair}")
    side = [] if part == "a config" else [file for file in FILES if file in files]
    return [config, *side, *weights]


def _weights(files: Sequence[str]) -> list[str]:
    """The one set of weights that is read: safetensors first, and unsharded first."""
    if "model.json" in files:
        return [file for file in files if PARAMS.fullmatch(file)]
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if whole in files:
            return [whole]
        if (index := f"{whole}.index.json") in files:
            return [index, *(file for file in files if SHARDS[index].fullmatch(file))]
    return []


def _not_given(name: str, error: Exception) -> FileNotFoundError:
    said = str(error).splitlines()[0] if str(error) else ""
    return FileNotFoundError(
        f"{name} is not here, and Hugging Face's hub did not give it: {type(error).__name__}: {said}"
    )
