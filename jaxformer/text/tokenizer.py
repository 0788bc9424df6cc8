"""Tokenizers of characters, words and bytes; `subwords` has those of published checkpoints."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from jaxformer.checks import check_vocabulary, without_padding
from jaxformer.text.subwords import Subwords

Tokens = Int[np.ndarray, " t"]


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of all tokenizers."""

    @property
    def n_vocab(self) -> int:
        """The number of ids, which are 0 to n_vocab - 1."""
        ...

    def encode(self, text: str) -> Tokens:
        """Return the ids of a text."""
        ...

    def decode(self, tokens: Tokens) -> str:
        """Return the text of ids; the -1s that `generate` returns after a stop are dropped."""
        ...

    def to_json(self) -> str:
        """Return the tokenizer as JSON, which `from_json` reads."""
        ...


class _VocabularyTokenizer:
    """The common part of `Characters` and `Words`: one id per entry of a vocabulary, in its order."""

    unit = ""
    joint = ""

    def __init__(self, vocabulary: Sequence[str]):
        self.vocabulary = vocabulary
        self._ids = {entry: i for i, entry in enumerate(vocabulary)}

    @property
    def n_vocab(self) -> int:
        """The number of entries."""
        return len(self.vocabulary)

    def split(self, text: str) -> Sequence[str]:
        """Split a text into entries."""
        raise NotImplementedError

    def encode(self, text: str) -> Tokens:
        """Return the ids of a text.

        Raises:
            ValueError: an entry that is not in the vocabulary; the error gives its position.
        """
        entries = self.split(text)
        try:
            return np.array([self._ids[entry] for entry in entries], np.int32)
        except KeyError as error:
            unknown, known = error.args[0], self.joint.join(self.vocabulary)
            shown = known if len(known) <= 120 else known[:120] + "..."
            raise ValueError(
                f"the {self.unit} {unknown!r} at position {entries.index(unknown)} is not in the vocabulary "
                f"of {self.n_vocab}: {shown!r}"
            ) from None

    def decode(self, tokens: Tokens) -> str:
        """Return the text of ids; the -1s that `generate` returns after a stop are dropped.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        tokens = without_padding(tokens)
        check_vocabulary(tokens, self.n_vocab)
        return self.joint.join(self.vocabulary[int(token)] for token in tokens)


class Characters(_VocabularyTokenizer):
    """One id per character of an alphabet, in the alphabet's order.

    >>> Characters.of("banana").encode("nab")
    array([2, 0, 1], dtype=int32)
    """

    unit = "character"

    def __init__(self, alphabet: str):
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(
                "an alphabet must be one or more different characters; Characters.of(text) collects them from a text"
            )
        super().__init__(alphabet)
        self.alphabet = alphabet

    @classmethod
    def of(cls, text: str) -> "Characters":
        """Return the tokenizer whose alphabet is the sorted characters of a text."""
        if not text:
            raise ValueError("the text is empty; an alphabet needs at least one character")
        return cls("".join(sorted(set(text))))

    def split(self, text: str) -> str:
        """Return the text, whose entries are its characters."""
        return text

    def to_json(self) -> str:
        """Return the tokenizer as JSON, which `from_json` reads."""
        return json.dumps({"kind": "characters", "alphabet": self.alphabet})


class Words(_VocabularyTokenizer):
    """One id per word of a vocabulary, in the vocabulary's order; white space separates words.

    >>> Words(["the", "cat", "sat"]).encode("the cat  sat")
    array([0, 1, 2], dtype=int32)
    """

    unit, joint = "word", " "

    def __init__(self, vocabulary: Sequence[str]):
        valid = all(word.split() == [word] for word in vocabulary)
        if not vocabulary or not valid or len(set(vocabulary)) != len(vocabulary):
            raise ValueError(
                "a vocabulary must be one or more different words without white space; "
                "Words.of(text) collects them from a text"
            )
        super().__init__(tuple(vocabulary))

    @classmethod
    def of(cls, text: str) -> "Words":
        """Return the tokenizer whose vocabulary is the sorted words of a text."""
        if not text.split():
            raise ValueError("the text has no words; a vocabulary needs at least one")
        return cls(sorted(set(text.split())))

    def split(self, text: str) -> list[str]:
        """Split a text at white space."""
        return text.split()

    def to_json(self) -> str:
        """Return the tokenizer as JSON, which `from_json` reads."""
        return json.dumps({"kind": "words", "vocabulary": self.vocabulary})


class Bytes:
    """One id per byte of UTF-8: every text can be encoded, with 256 ids.

    >>> Bytes().encode("é")
    array([195, 169], dtype=int32)
    """

    n_vocab = 256

    def encode(self, text: str) -> Tokens:
        """Return the bytes of a text."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, tokens: Tokens) -> str:
        """Return the text of bytes; the -1s at the end are dropped, and what is not valid UTF-8 becomes U+FFFD.

        Raises:
            ValueError: an id outside 0 to 255.
        """
        tokens = without_padding(tokens)
        check_vocabulary(tokens, 256)
        return tokens.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """Return the tokenizer as JSON, which `from_json` reads."""
        return json.dumps({"kind": "bytes"})


def stream_text(tokenizer: Tokenizer, pieces: Iterable[Int[np.ndarray, " _"]]) -> Iterator[str]:
    """Yield the text of tokens that arrive in pieces. Joined, the parts equal `decode` of all tokens.

    Text that later tokens may change is held back: a U+FFFD at the end, which may be an incomplete character, and
    the tokens that Subwords report as unfinished.

    >>> cut = Bytes().encode("né!")
    >>> list(stream_text(Bytes(), [cut[:2], cut[2:]]))
    ['n', 'é!']
    """
    latest, shown = np.zeros(0, np.int32), 0
    for piece in pieces:
        latest = np.concatenate([latest, piece])
        held = tokenizer.unfinished(latest) if isinstance(tokenizer, Subwords) else 0
        text = tokenizer.decode(latest[: len(latest) - held])
        if new := text[shown:].removesuffix(UNKNOWN):
            yield new
        latest = latest[-LONGEST - held :]
        shown = len(tokenizer.decode(latest[: len(latest) - held]).removesuffix(UNKNOWN))
    if rest := tokenizer.decode(latest)[shown:]:
        yield rest


UNKNOWN = "\ufffd"
"""The replacement for invalid bytes in a decoded text."""
LONGEST = 4
"""The most tokens that one character can span, since UTF-8 has at most 4 bytes per character."""


def from_json(text: str) -> Tokenizer:
    """Return the tokenizer that `to_json` wrote.

    Raises:
        ValueError: text that no `to_json` wrote.

    >>> from_json(Characters.of("banana").to_json()).alphabet
    'abn'
    """
    try:
        fields = json.loads(text)
        return KINDS[fields["kind"]](fields)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        kinds = ", ".join(KINDS)
        raise ValueError(f"not a jaxformer tokenizer ({kinds}): {text[:80]!r}") from error


KINDS = {
    "characters": lambda fields: Characters(fields["alphabet"]),
    "words": lambda fields: Words(fields["vocabulary"]),
    "bytes": lambda fields: Bytes(),
    "subwords": lambda fields: Subwords(fields["tokenizer"]),
}
