"""The tokenizer in the folder of a published checkpoint, and one of ours into such a folder."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.pretrained.atomic import replace_file
from jaxformer.pretrained.json_io import read_object
from jaxformer.pretrained.tokenizers.classes import (
    CLASSES,
    NAMED,
    PLAIN,
    add_tokens,
    as_class,
    class_of,
    content_of,
    ends,
)
from jaxformer.text.subwords import Subwords, bpe, byte_level, check_merges
from jaxformer.text.tokenizer import Tokenizer

REFUSED = (
    "split_special_tokens",
    "fix_mistral_regex",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "fast_tokenizer_files",
    "auto_map",
)
"""Settings of tokenizer_config.json that would change ids or texts, and that nothing here does."""

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
"""Those of which a tokenizer is read, here and in transformers."""


def from_folder(folder: str | os.PathLike[str]) -> Subwords | None:
    """The tokenizer in the folder of a checkpoint: tokenizer.json, or vocab.json and merges.txt; or None.

    Its ids are those of `transformers`: what tokenizer_config.json, special_tokens_map.json and
    added_tokens.json say beside it is honoured. One difference is meant: a byte-level tokenizer.json cuts a
    text as it says, where transformers 5 takes the pattern of the class that tokenizer_class names.

    Raises:
        ValueError: a file that is damaged, or a setting that is not known here.

    >>> from_folder("a folder without a tokenizer") is None
    True
    """
    folder = Path(folder)
    whole, vocab = folder / "tokenizer.json", folder / "vocab.json"
    if not whole.is_file() and not vocab.is_file():
        if (folder / "tokenizer.model").is_file():
            raise ValueError(
                f"{folder} has a tokenizer.model but no tokenizer.json; convert it first: "
                "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        return None
    path = whole if whole.is_file() else vocab
    content = read_object(path) if path is whole else _from_lists(vocab, folder / "merges.txt")
    settings = _settings(folder)
    kind = _kind(folder, content if path is whole else {}, settings)
    if path is vocab and kind in PLAIN:
        kind = "GPT2Tokenizer"
    try:
        content = as_class(content, kind, settings, whole=path is whole)
        add_tokens(content, kind, settings)
        if path is not whole:
            content["post_processor"] = ends(content, kind, settings)
        return Subwords(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {_said(error)}") from error


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


def _from_lists(vocab: Path, merges: Path) -> dict[str, Any]:
    """GPT-2's two files: the ids of tokens, and pairs to merge, one a line, the first pairs first."""
    if not merges.is_file():
        raise ValueError(f"{merges} is missing; {vocab.name} needs it")
    try:
        text = merges.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{merges} is no UTF-8: {error}") from error
    lines = text.removesuffix("\n").split("\n")  # splitlines would part tokens too
    lines = [line.removesuffix("\r") for line in lines if line and not line.startswith("#version")]
    ids = read_object(vocab)
    try:
        check_merges(lines, ids)
    except ValueError as error:
        raise ValueError(f"{merges}: {error}") from error
    return bpe(ids, lines, (), **byte_level())


def _settings(folder: Path) -> dict[str, Any]:
    """What stands beside a tokenizer; files of before tokenizer_config.json listed all count where it does not."""
    path = folder / "tokenizer_config.json"
    settings = read_object(path) if path.is_file() else {}
    for name in REFUSED:
        if settings.get(name):
            raise ValueError(f"{path} has {name}={settings[name]!r}, which is not done here")
    if "added_tokens_decoder" in settings:
        return settings
    if (more := folder / "special_tokens_map.json").is_file():
        settings |= read_object(more)
    if (more := folder / "added_tokens.json").is_file():
        special = {content_of(settings.get(name)) for name in NAMED}
        settings["added_tokens_decoder"] = {
            number: {"content": token, "special": token in special}
            for token, number in read_object(more).items()
        }
    return settings


def _kind(folder: Path, content: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The class that transformers would read a tokenizer with."""
    path = folder / "config.json"
    config = read_object(path) if path.is_file() else {}
    pipeline = {name: part for name, part in content.items() if name != "model"}
    kind = class_of(config, settings, '"ByteLevel"' in json.dumps(pipeline))
    if kind not in CLASSES:
        raise ValueError(
            f"{folder / 'tokenizer_config.json'} has tokenizer_class={kind!r}; "
            f"read here are {', '.join(CLASSES)}"
        )
    return kind
