"""Between text and token ids: characters, words and bytes; `subwords` has those of published checkpoints."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from jaxformer.checks import check_vocabulary
from jaxformer.text.subwords import Subwords

Tokens = Int[np.ndarray, " t"]


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the project asks of a tokenizer."""

    @property
    def n_vocab(self) -> int:
        """The number of ids: 0 to n_vocab - 1."""
        ...

    def encode(self, text: str) -> Tokens:
        """The ids of a text."""
        ...

    def decode(self, tokens: Tokens) -> str:
        """The text of some ids."""
        ...

    def to_json(self) -> str:
        """What `from_json` needs to make the same tokenizer."""
        ...


class _Listed:
    """One id for each entry of a vocabulary, in its order: what `Characters` and `Words` have in common."""

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
        """The entries that a text is made of."""
        raise NotImplementedError

    def encode(self, text: str) -> Tokens:
        """The ids of a text.

        Raises:
            ValueError: something that is not in the vocabulary, with its place.
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
        """The text of some ids.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        check_vocabulary(tokens, self.n_vocab)
        return self.joint.join(self.vocabulary[int(token)] for token in tokens)


class Characters(_Listed):
    """One id per character of an alphabet, in the alphabet's order.

    >>> Characters.of("banana").encode("nab")
    array([2, 0, 1], dtype=int32)
    """

    unit = "character"

    def __init__(self, alphabet: str):
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(
                "an alphabet is one or more characters, each once; Characters.of(text) finds it"
            )
        super().__init__(alphabet)
        self.alphabet = alphabet

    @classmethod
    def of(cls, text: str) -> "Characters":
        """The tokenizer whose alphabet is the characters of this text, sorted."""
        if not text:
            raise ValueError("no characters to make an alphabet of: the text is empty")
        return cls("".join(sorted(set(text))))

    def split(self, text: str) -> str:
        """The text itself."""
        return text

    def to_json(self) -> str:
        """The alphabet."""
        return json.dumps({"kind": "characters", "alphabet": self.alphabet})


class Words(_Listed):
    """One id per word of a vocabulary, in the vocabulary's order; white space parts the words.

    >>> Words(["the", "cat", "sat"]).encode("the cat  sat")
    array([0, 1, 2], dtype=int32)
    """

    unit, joint = "word", " "

    def __init__(self, vocabulary: Sequence[str]):
        whole = all(word.split() == [word] for word in vocabulary)
        if not vocabulary or not whole or len(set(vocabulary)) != len(vocabulary):
            raise ValueError(
                "a vocabulary is one or more words without white space in them, each once; "
                "Words.of(text) finds it"
            )
        super().__init__(tuple(vocabulary))

    @classmethod
    def of(cls, text: str) -> "Words":
        """The tokenizer whose vocabulary is the words of this text, sorted."""
        if not text.split():
            raise ValueError("no words to make a vocabulary of: the text is empty")
        return cls(sorted(set(text.split())))

    def split(self, text: str) -> list[str]:
        """The words of a text."""
        return text.split()

    def to_json(self) -> str:
        """The vocabulary."""
        return json.dumps({"kind": "words", "vocabulary": self.vocabulary})


class Bytes:
    """The 256 bytes of UTF-8: every text has ids, and no alphabet has to be kept.

    >>> Bytes().encode("é")
    array([195, 169], dtype=int32)
    """

    n_vocab = 256

    def encode(self, text: str) -> Tokens:
        """The bytes of a text."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, tokens: Tokens) -> str:
        """The text of some bytes; what is no UTF-8 becomes U+FFFD.

        Raises:
            ValueError: an id that is no byte.
        """
        check_vocabulary(tokens, 256)
        return np.asarray(tokens).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """Its name is all there is to know."""
        return json.dumps({"kind": "bytes"})


def stream_text(tokenizer: Tokenizer, pieces: Iterable[Int[np.ndarray, " _"]]) -> Iterator[str]:
    """The text of tokens that come piece by piece, as far as it is certain; joined it is `decode` of them all.

    A U+FFFD at the end may be a character whose other bytes are still to come: it waits for the next piece,
    as do tokens that Subwords call unfinished.

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
"""What stands in a decoded text for bytes that are no character."""
LONGEST = 4
"""The most tokens that may share a character: it has no more bytes."""


def from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote.

    Raises:
        ValueError: text that no tokenizer of ours wrote.

    >>> from_json(Characters.of("banana").to_json()).alphabet
    'abn'
    """
    try:
        fields = json.loads(text)
        return KINDS[fields["kind"]](fields)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a tokenizer of ours ({', '.join(KINDS)}): {text[:80]!r}") from error


KINDS = {
    "characters": lambda fields: Characters(fields["alphabet"]),
    "words": lambda fields: Words(fields["vocabulary"]),
    "bytes": lambda fields: Bytes(),
    "subwords": lambda fields: Subwords(fields["tokenizer"]),
}
