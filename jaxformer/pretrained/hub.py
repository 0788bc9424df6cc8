"""Fetch models from Hugging Face's hub into the cache of `huggingface_hub`."""

from pathlib import Path
from typing import Literal

from jaxformer.pretrained.tokenizers.folder import FILES

Part = Literal["a model", "a config", "a tokenizer"]
"""The part of a repository to fetch."""

CONFIGS = ("model.json", "config.json")
"""The files that describe a folder's model, in order of preference: jaxformer's, then Hugging Face's."""

WEIGHTS = {
    "safetensors": (
        "params-*.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "model*-of-*.safetensors",
    ),
    "bin": ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*-of-*.bin"),
}
"""File patterns of weights, by file ending. Pickles are fetched only if there is no safetensors file."""


def fetch(name: str, part: Part) -> Path:
    """Fetch part of a repository and return its folder in the hub's cache; offline, the cached files serve.

    Raises:
        FileNotFoundError: the hub cannot be reached or lacks the repository, or that holds no model or no weights.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} does not exist; to search Hugging Face's hub for it: pip install 'jaxformer[hf]'"
        ) from error

    def download(*patterns: str) -> Path:
        try:
            return Path(snapshot_download(name, allow_patterns=[*patterns], ignore_patterns="*/*"))
        except Exception as error:  # the library raises many types
            reason = str(error).splitlines()[0] if str(error) else ""
            raise FileNotFoundError(
                f"{name} does not exist, and fetching it from Hugging Face's hub failed: "
                f"{type(error).__name__}: {reason}"
            ) from error

    folder = download(*CONFIGS, *(() if part == "a config" else FILES))
    if not any((folder / file).is_file() for file in CONFIGS):
        raise FileNotFoundError(
            f"{name} in Hugging Face's hub has no model.json or config.json (or only the local cache was "
            f"available); if it has GGUF files, download one and give its path: hf download {name} FILE.gguf"
        )
    if part == "a model":
        for ending, patterns in WEIGHTS.items():
            folder = download(*CONFIGS, *patterns)
            if any(folder.glob(f"*.{ending}")):
                break
        else:
            raise FileNotFoundError(
                f"{name} in Hugging Face's hub has no weights in {' or '.join(WEIGHTS)} files (or only the local "
                "cache was available)"
            )
    return folder
