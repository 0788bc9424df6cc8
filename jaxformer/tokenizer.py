"""Between text and token ids: characters and bytes."""

import json
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from jaxformer.transformer import check_vocabulary

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


class Characters:
    """One id per character of an alphabet, in the alphabet's order.

    >>> Characters.of("banana").encode("nab")
    array([2, 0, 1], dtype=int32)
    """

    def __init__(self, alphabet: str):
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(
                "an alphabet is one or more characters, each once; Characters.of(text) finds it"
            )
        self.alphabet = alphabet
        self._ids = {character: i for i, character in enumerate(alphabet)}

    @classmethod
    def of(cls, text: str) -> "Characters":
        """The tokenizer whose alphabet is the characters of this text, sorted."""
        if not text:
            raise ValueError("no characters to make an alphabet of: the text is empty")
        return cls("".join(sorted(set(text))))

    @property
    def n_vocab(self) -> int:
        """The size of the alphabet."""
        return len(self.alphabet)

    def encode(self, text: str) -> Tokens:
        """The ids of a text.

        Raises:
            ValueError: a character that is not in the alphabet, with its place.
        """
        try:
            return np.array([self._ids[character] for character in text], np.int32)
        except KeyError as error:
            unknown = error.args[0]
            shown = self.alphabet if len(self.alphabet) <= 120 else self.alphabet[:120] + "..."
            raise ValueError(
                f"the character {unknown!r} at position {text.index(unknown)} is not in the alphabet "
                f"of {self.n_vocab}: {shown!r}"
            ) from None

    def decode(self, tokens: Tokens) -> str:
        """The text of some ids.

        Raises:
            ValueError: an id outside the alphabet.
        """
        check_vocabulary(tokens, self.n_vocab)
        return "".join(self.alphabet[token] for token in tokens)

    def to_json(self) -> str:
        """The alphabet."""
        return json.dumps({"kind": "characters", "alphabet": self.alphabet})


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
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"not a tokenizer of ours ({', '.join(KINDS)}): {text[:80]!r}") from error


KINDS = {
    "characters": lambda fields: Characters(fields["alphabet"]),
    "bytes": lambda fields: Bytes(),
}
