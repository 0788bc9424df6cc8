"""Texts by the tokenizers of published models, which put special tokens around each and look at whole words."""

import functools
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxformer.config import Config
from jaxformer.model.sites import Edit, keep
from jaxformer.text.subwords import Subwords
from jaxformer.text.tokenizer import Tokenizer, Tokens

CUT = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=\w)")
"""Places where a token ends whatever is far from it: before a space, which goes with what follows it, and at the
beginning of a line."""
PAST = 128
"""Characters of the text before a part that it is encoded with."""


class Frame(NamedTuple):
    """The special tokens that a tokenizer puts around every text, and the same tokenizer without them."""

    before: Tokens
    after: Tokens
    plain: Tokenizer


def frame(tokenizer: Tokenizer) -> Frame:
    """What a tokenizer does beside cutting the text."""
    nothing = np.zeros(0, np.int32)
    if not isinstance(tokenizer, Subwords):
        return Frame(nothing, nothing, tokenizer)
    around = tokenizer.encode("")
    if not len(around):
        return Frame(nothing, nothing, tokenizer)
    plain = Subwords({**tokenizer.content, "post_processor": None})
    inside, whole = plain.encode("a"), tokenizer.encode("a")
    for i in range(len(around) + 1):
        parts = around[:i], inside, around[i:]
        if np.array_equal(np.concatenate(parts), whole):
            return Frame(around[:i], around[i:], plain)
    raise ValueError(
        f"the tokenizer puts {around.tolist()} around an empty text, but makes {whole.tolist()} of 'a', "
        f"whose own tokens are {inside.tolist()}"
    )


def opening(tokenizer: Tokenizer, text: str) -> Tokens:
    """The tokens of a text that is to be gone on with: no token that ends every text is behind it."""
    before, _, plain = frame(tokenizer)
    return np.concatenate([before, plain.encode(text)])


def encode_pieces(
    tokenizer: Tokenizer, pieces: Iterable[str], block: int
) -> Iterator[tuple[Tokens, int]]:
    """The tokens of a whole text that comes in pieces, and of how many characters they are, part by part.

    Only about `block` characters are held, or as many as there are between two places where words end.

    Raises:
        ValueError: a text that has no ids, or is cut otherwise as a whole than in parts.

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
                f"the tokenizer cuts {past[-20:]!r} otherwise when {text[:20]!r} follows; "
                "a text cannot be prepared with it in parts"
            )
        new = tokens[len(known) :]
        yield (new if past else np.concatenate([before, new])), len(text)
        past = (past + text)[-PAST:]
    if past and len(after):
        yield after, 0


def blocks(pieces: Iterable[str], block: int, *, anywhere: bool = False) -> Iterator[str]:
    """The same text in parts of about `block` characters, which end where words do.

    Where a part has no such end, it is held until one comes, or it ends anywhere.

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
            searched = len(held) - 1  # a place to cut is known by the character after it
            continue
        cut = last[0].start() if last else len(held)
        yield held[:cut]
        held, searched = held[cut:], 0
    if held:
        yield held


def vocabulary(tokenizer: Tokenizer) -> Any:
    """What tells two tokenizers' vocabularies apart: of subwords, every token's id; of others, all there is."""
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
    """An edit by which a model never says an entry that its tokenizer has no text for.

    Models of published families have more rows in their embeddings than tokens, to make them a round number.
    """
    if tokenizer.n_vocab >= config.n_vocab:
        return keep
    return _below(tokenizer.n_vocab)


@functools.cache
def _below(n: int) -> Edit:
    def hide(site: str, layer: Any, value: Any) -> Any:
        del layer
        if site != "logits":
            return value
        return jnp.where(jnp.arange(value.shape[-1]) < n, value, -jnp.inf)

    return hide
