"""Tokenize texts of any size into a token file: `python -m train.prepare texts/ --out corpus.tokens`."""

import bisect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jaxformer.pretrained.formats import is_gguf
from jaxformer.pretrained.loading import load_tokenizer
from jaxformer.text.tokenizer import Bytes, Characters, Tokenizer, from_json
from train.data.corpora import find_files, read_files
from train.data.tokenfile import TokenFile, UnknownCharacter, is_token_file, write_tokens
from train.runs import find_model


@dataclass(frozen=True)
class Command:
    """Tokenize text files into one token file, to train on without holding the text in memory."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """text files, folders or globs, in this order; each file is read once"""
    out: Path
    """token file to write"""
    tokenizer: str = "characters"
    """characters, bytes, the JSON file of a jaxformer tokenizer, or a model with a tokenizer: a folder of jaxformer or
    Hugging Face, a GGUF file, a hub id"""
    overwrite: bool = False
    """replace an existing token file"""


def prepare(command: Command, console: Console) -> TokenFile:
    """Write the token file and open it.

    Raises:
        ValueError: there is no text, text that is not UTF-8 or that the tokenizer cannot encode, or --out exists.
        OSError: a file cannot be read or written.
    """
    files = _find_all(command.paths)
    _check_target(command.out, files, overwrite=command.overwrite)
    with _progress_bar(console) as bar:
        reading = Reading(files, bar)
        tokenizer = make_tokenizer(command.tokenizer, lambda: reading.pieces("finding characters"))
        command.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            return write_tokens(command.out, tokenizer, reading.pieces("writing tokens"))
        except UnknownCharacter as error:
            path, position = reading.place(error.position)
            raise ValueError(
                f"{path} has {error.character!r} at position {position}, which is not among the "
                f"{tokenizer.n_vocab} entries of the tokenizer; choose another tokenizer or text"
            ) from error


def make_tokenizer(name: str, pieces: Callable[[], Iterable[str]]) -> Tokenizer:
    """Return the tokenizer of this name or file; for `characters`, collect the alphabet from the text.

    Raises:
        ValueError: there is no such tokenizer, or no text to collect characters from.
        OSError: the file or the model cannot be read.
    """
    if name == "bytes":
        return Bytes()
    if name == "characters":
        return Characters(find_alphabet(pieces()))
    path = Path(name)
    if not path.is_file() or is_gguf(path):
        return _tokenizer_of(name)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if (
            isinstance(fields, dict) and "kind" not in fields
        ):  # the JSON of a model, which contains a tokenizer
            fields = fields.get("tokenizer")
        return from_json(json.dumps(fields))
    except ValueError as error:
        raise ValueError(f"{path} does not hold a tokenizer: {error}") from error


def _tokenizer_of(name: str) -> Tokenizer:
    try:
        tokenizer = load_tokenizer(find_model(name)[0])
    except FileNotFoundError as error:
        raise ValueError(
            f"there is no tokenizer {name!r}; choose characters, bytes, a tokenizer's file or a model ({error})"
        ) from error
    if tokenizer is None:
        raise ValueError(f"the model {name} has no tokenizer; choose another --tokenizer")
    return tokenizer


def find_alphabet(pieces: Iterable[str]) -> str:
    """Return the different characters of a text, sorted.

    >>> find_alphabet(["ban", "ana"])
    'abn'
    """
    seen = np.zeros(sys.maxunicode + 1, bool)
    for piece in pieces:
        seen[np.frombuffer(piece.encode("utf-32-le"), "<u4")] = True
    if not seen.any():
        raise ValueError("the texts are empty; give some text to collect characters from")
    return "".join(chr(i) for i in np.flatnonzero(seen))


class Reading:
    """Text files that can be read several times, with a progress bar."""

    def __init__(self, files: Sequence[Path], bar: Progress):
        self.files = files
        self.bar = bar
        self._starts: list[tuple[int, Path]] = []

    def pieces(self, what: str) -> Iterator[str]:
        """Yield the text in pieces; `what` is the title of the progress bar."""
        task = self.bar.add_task(what, total=_size(self.files))
        self._starts = []
        position = 0
        for path, piece in read_files(self.files):
            if not self._starts or self._starts[-1][1] != path:
                self._starts.append((position, path))
            yield piece
            position += len(piece)
            self.bar.advance(task, len(piece.encode()))

    def place(self, position: int) -> tuple[Path, int]:
        """Return the file that contains a position of the text that `pieces` read, and the position in that file."""
        i = bisect.bisect_right(self._starts, position, key=lambda start: start[0]) - 1
        start, path = self._starts[i]
        return path, position - start


def _size(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _find_all(names: Sequence[str]) -> list[Path]:
    files: dict[Path, None] = {}
    for name in names:
        found = find_files(name) if name else []
        if not found:
            raise ValueError(
                f"there is no text {name!r}; give a file, a folder or a glob that contains files"
            )
        files |= dict.fromkeys(found)
    if not files:
        raise ValueError("no text was given; name files, folders or globs")
    return list(files)


def _check_target(out: Path, files: Sequence[Path], *, overwrite: bool) -> None:
    if not out.exists():
        folder = next(parent for parent in out.parents if parent.exists())
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; choose another --out than {out}")
        return
    if any(out.samefile(path) for path in files):
        raise ValueError(f"{out} is one of the texts to read; choose another --out")
    if not overwrite:
        raise ValueError(f"{out} exists; choose another --out, or replace it (--overwrite)")
    if not out.is_file() or not is_token_file(out):
        raise ValueError(f"{out} is not a token file and was not replaced; choose another --out")


def _progress_bar(console: Console) -> Progress:
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def main(args: list[str] | None = None) -> int:
    """Run the command line; exit status 0: done, 1: an error, 130: stopped by Ctrl-C."""
    command = tyro.cli(
        Command, prog="python -m train.prepare", args=args, config=(tyro.conf.FlagCreatePairsOff,)
    )
    try:
        file = prepare(command, Console(stderr=True))
    except KeyboardInterrupt:
        print(f"stopped; {command.out} was not changed", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{len(file.tokens):,} tokens, {file.tokens.nbytes:,} bytes, "
        f"vocabulary {file.tokenizer.n_vocab}, in {command.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
