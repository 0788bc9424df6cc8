"""Read and write the tokenizer in the folder of a published checkpoint."""
# pyright: reportMissingImports=false

import json
import os
import warnings
from pathlib import Path

from jaxformer.pretrained.atomic import replace_file
from jaxformer.pretrained.json_io import read_object
from jaxformer.text.subwords import Subwords
from jaxformer.text.tokenizer import Tokenizer

OLDER = ("vocab.json", "tokenizer.model")
"""Older formats, which transformers converts to tokenizer.json."""
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    *OLDER,
)
"""All files from which jaxformer or transformers reads a tokenizer."""


def from_folder(folder: str | os.PathLike[str]) -> Subwords | None:
    """Return the tokenizer in the folder of a checkpoint; None: it has none.

    The ids are those of tokenizer.json. A folder with only older formats is converted by transformers.

    Raises:
        ValueError: a damaged file, or an older format while transformers is not installed.

    >>> print(from_folder("a folder without a tokenizer"))
    None
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        older = [name for name in OLDER if (folder / name).is_file()]
        return _converted(folder, older[0]) if older else None
    content = read_object(path)
    try:
        return Subwords(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {_message(error)}") from error


def _converted(folder: Path, older: str) -> Subwords:
    """Convert a tokenizer in an older format with transformers.

    Raises:
        ValueError: transformers is not installed, or cannot read the files.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ValueError(
            f"{folder} has {older} but no tokenizer.json; install transformers, which converts it: "
            "pip install transformers"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return Subwords(json.loads(tokenizer.backend_tokenizer.to_str()))
    except Exception as error:  # transformers raises many types
        raise ValueError(
            f"transformers cannot convert {folder / older} to tokenizer.json: {_message(error)}"
        ) from error


def save_tokenizer(folder: str | os.PathLike[str], tokenizer: Tokenizer | None) -> None:
    """Write a tokenizer in transformers' format, and delete the folder's older one; None: only delete.

    Raises:
        ValueError: a tokenizer other than Subwords; the older one is kept.
    """
    files = tokenizer_files(tokenizer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        replace_file(folder / name, data)


def tokenizer_files(tokenizer: Tokenizer | None) -> dict[str, bytes]:
    """Return the files that `save_tokenizer` writes: tokenizer.json and the tokenizer_config.json that it needs.

    Raises:
        ValueError: a tokenizer other than Subwords.
    """
    if tokenizer is None:
        return {}
    if not isinstance(tokenizer, Subwords):
        raise ValueError(
            f"{type(tokenizer).__name__} cannot be written as tokenizer.json, only Subwords can; "
            "give tokenizer=None to export the model without it"
        )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": json.dumps(tokenizer.content, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"malformed content: {error!r}"
