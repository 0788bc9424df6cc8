"""Tokenize long texts in pieces, also for published tokenizers with special tokens around each text."""

import functools
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxformer.config import Config
from jaxformer.sites import Edit, identity
from jaxformer.text.subwords import Subwords
from jaxformer.text.tokenizer import Tokenizer, Tokens

CUT = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=\w)")
"""Places where a token always ends: before a space (which belongs to the next word) and at the beginning of a line."""
PAST = 128
"""The number of characters before a part that are encoded together with the part, as context."""


class Frame(NamedTuple):
    """The special tokens that a tokenizer puts around every text, and the same tokenizer without them."""

    before: Tokens
    after: Tokens
    plain: Tokenizer


def frame(tokenizer: Tokenizer) -> Frame:
    """Return the special tokens that a tokenizer adds to every text."""
    nothing = np.zeros(0, np.int32)
    if not isinstance(tokenizer, Subwords):
        return Frame(nothing, nothing, tokenizer)
    around = tokenizer.encode("")
    if not len(around):
        return Frame(nothing, nothing, tokenizer)
    plain = Subwords({**tokenizer.content, "post_processor": None})
    inside, framed = plain.encode("a"), tokenizer.encode("a")
    for i in range(len(around) + 1):
        parts = around[:i], inside, around[i:]
        if np.array_equal(np.concatenate(parts), framed):
            return Frame(around[:i], around[i:], plain)
    raise ValueError(
        f"the tokenizer encodes '' as {around.tolist()} and 'a' as {framed.tolist()}, which are not special tokens "
        f"around {inside.tolist()}; choose another tokenizer"
    )


def opening(tokenizer: Tokenizer, text: str) -> Tokens:
    """Encode a text to continue, without the special tokens that end a text."""
    before, _, plain = frame(tokenizer)
    return np.concatenate([before, plain.encode(text)])


def encode_pieces(
    tokenizer: Tokenizer, pieces: Iterable[str], block: int
) -> Iterator[tuple[Tokens, int]]:
    """Encode a long text in parts: yield the tokens of each part and its number of characters.

    Memory holds about `block` characters, or as many as there are between two places where words end.

    Raises:
        ValueError: the text cannot be encoded, or is tokenized differently in parts.

    >>> words = Subwords({"model": {"type": "WordLevel", "vocab": {"cat": 0, "?": 1}, "unk_token": "?"}})
    >>> list(encode_pieces(words, ["c", "at"], 100))
    [(array([0], dtype=int32), 3)]
    """
    before, after, plain = frame(tokenizer)
    past = ""
    for text in blocks(pieces, block):
        known, tokens = plain.encode(past), plain.encode(past + text)
        if not np.array_equal(tokens[: len(known)], known):
            raise ValueError(
                f"the tokenizer splits {past[-20:]!r} differently when {text[:20]!r} follows; "
                "choose another tokenizer, which can encode a text in parts"
            )
        new = tokens[len(known) :]
        yield (new if past else np.concatenate([before, new])), len(text)
        past = (past + text)[-PAST:]
    if past and len(after):
        yield after, 0


def blocks(pieces: Iterable[str], block: int, *, anywhere: bool = False) -> Iterator[str]:
    """Regroup a text into parts of about `block` characters, each of which ends where a word ends.

    A part without the end of a word grows until it has one, or with `anywhere` ends anywhere.

    >>> list(blocks(["one tw", "o three"], 4))
    ['one', ' two', ' three']
    """
    held, searched = "", 0
    for piece in pieces:
        held += piece
        if len(held) < block:
            continue
        last = deque(CUT.finditer(held, searched), maxlen=1)
        if not last and not anywhere:
            searched = len(held) - 1  # whether a place is a cut depends on the character after it
            continue
        cut = last[0].start() if last else len(held)
        yield held[:cut]
        held, searched = held[cut:], 0
    if held:
        yield held


def vocabulary(tokenizer: Tokenizer) -> Any:
    """Return a value that is equal for tokenizers with the same vocabulary: the ids of Subwords, or else the JSON."""
    if not isinstance(tokenizer, Subwords):
        return tokenizer.to_json()
    listed = tokenizer.content["model"]["vocab"]
    ids = (
        dict(listed)
        if isinstance(listed, dict)
        else {token: i for i, (token, _) in enumerate(listed)}
    )
    added = tokenizer.content.get("added_tokens") or ()
    return ids | {entry["content"]: entry["id"] for entry in added}


def sayable(config: Config, tokenizer: Tokenizer) -> Edit:
    """Return an edit that gives probability 0 to vocabulary entries without a token.

    Published models often pad their embeddings to a round number of rows.
    """
    if tokenizer.n_vocab >= config.n_vocab:
        return identity
    return _below(tokenizer.n_vocab)


@functools.cache
def _below(n: int) -> Edit:
    def hide(site: str, layer: Any, value: Any) -> Any:
        del layer
        if site != "logits":
            return value
        return jnp.where(jnp.arange(value.shape[-1]) < n, value, -jnp.inf)

    return hide
