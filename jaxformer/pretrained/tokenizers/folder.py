"""The tokenizer in the folder of a published checkpoint, and one of ours into such a folder."""
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
"""Files of which transformers makes a tokenizer.json."""
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    *OLDER,
)
"""Those that a tokenizer is read from, here and in transformers."""


def from_folder(folder: str | os.PathLike[str]) -> Subwords | None:
    """The tokenizer in the folder of a checkpoint, or None.

    Its ids are those that tokenizer.json gives. A folder with older files alone is read by transformers, where that is
    installed.

    Raises:
        ValueError: a file that is damaged, or older files without transformers.

    >>> from_folder("a folder without a tokenizer") is None
    True
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
        raise ValueError(f"{path}: {_said(error)}") from error


def _converted(folder: Path, older: str) -> Subwords:
    """The tokenizer that transformers makes of older files.

    Raises:
        ValueError: transformers is not installed, or cannot read them.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ValueError(
            f"{folder} has {older} but no tokenizer.json; transformers makes one: pip install transformers, and load "
            "again"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return Subwords(json.loads(tokenizer.backend_tokenizer.to_str()))
    except Exception as error:  # of many kinds
        raise ValueError(
            f"transformers makes no tokenizer.json of {folder / older}: {_said(error)}"
        ) from error


def save_tokenizer(folder: str | os.PathLike[str], tokenizer: Tokenizer | None) -> None:
    """Write a tokenizer as `transformers` reads it, in place of the one that may be there; None: leave none.

    Raises:
        ValueError: a tokenizer that is none of subwords; what was there stays.
    """
    files = tokenizer_files(tokenizer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        replace_file(folder / name, data)


def tokenizer_files(tokenizer: Tokenizer | None) -> dict[str, bytes]:
    """What `save_tokenizer` writes: tokenizer.json, and a tokenizer_config.json that names it.

    Raises:
        ValueError: a tokenizer that is none of subwords.
    """
    if tokenizer is None:
        return {}
    if not isinstance(tokenizer, Subwords):
        raise ValueError(
            f"{type(tokenizer).__name__} has no tokenizer.json; only Subwords can be exported: "
            "give None to write the model without it"
        )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": json.dumps(tokenizer.content, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"not as it should be: {error!r}"
