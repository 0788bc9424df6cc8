"""Models in Hugging Face's hub: the files that are fetched, into the cache of `huggingface_hub`."""

from pathlib import Path
from typing import Literal

from jaxformer.pretrained.tokenizers.folder import FILES

Part = Literal["a model", "a config", "a tokenizer"]
"""What is wanted of a repository."""

CONFIGS = ("model.json", "config.json")
"""The files that say what model a folder holds: of ours and, where there is none, of Hugging Face's."""

WEIGHTS = {
    "safetensors": (
        "params-*.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "model*-of-*.safetensors",
    ),
    "bin": ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*-of-*.bin"),
}
"""By the ending of the files of weights; pickles are fetched where there is nothing else."""


def fetch(name: str, part: Part) -> Path:
    """The folder in the hub's cache that has this part of a model; without a network, what it had before.

    Raises:
        FileNotFoundError: the hub does not give it, or it is no model that is known by its folder.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} is not here; to look for it in Hugging Face's hub: pip install 'jaxformer[hf]'"
        ) from error

    def download(*patterns: str) -> Path:
        try:
            return Path(snapshot_download(name, allow_patterns=[*patterns], ignore_patterns="*/*"))
        except Exception as error:  # of many kinds
            said = str(error).splitlines()[0] if str(error) else ""
            raise FileNotFoundError(
                f"{name} is not here, and Hugging Face's hub did not give it: {type(error).__name__}: {said}"
            ) from error

    folder = download(*CONFIGS, *(() if part == "a config" else FILES))
    if not any((folder / file).is_file() for file in CONFIGS):
        raise FileNotFoundError(
            f"{name} in Hugging Face's hub has no model.json or config.json (or only its cache could be reached); if "
            f"it has GGUF files, download one and give its path: hf download {name} FILE.gguf"
        )
    if part == "a model":
        for ending, patterns in WEIGHTS.items():
            folder = download(*CONFIGS, *patterns)
            if any(folder.glob(f"*.{ending}")):
                break
        else:
            raise FileNotFoundError(
                f"{name} in Hugging Face's hub has no {' or '.join(WEIGHTS)} files of weights (or only its cache "
                "could be reached)"
            )
    return folder
