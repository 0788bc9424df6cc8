"""Subword tokenizers of published checkpoints, run by the library `tokenizers`."""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

from jaxformer.checks import check_vocabulary, without_padding

T = TypeVar("T")
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""The name of a byte's token in a vocabulary with byte fallback."""


class Subwords:
    """The tokenizer that a tokenizer.json describes. It may add special tokens, such as BOS, to every text.

    >>> words = Subwords({"model": {"type": "WordLevel", "vocab": {"cat": 0, "?": 1}, "unk_token": "?"}})
    >>> words.encode("cat")
    array([0], dtype=int32)
    """

    def __init__(self, content: Mapping[str, Any]):
        """Make a tokenizer from the content of a tokenizer.json, with truncation and padding switched off.

        Raises:
            ValueError: malformed content, or ids that are not 0 to n - 1, each once.
        """
        _check_model(content.get("model"))
        self.content = {**content, "truncation": None, "padding": None}
        self._tokenizer = _library(self.content)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.n_vocab = _check_ids(vocabulary)
        for entry in content.get("added_tokens") or ():
            if (given := vocabulary.get(entry["content"])) != entry["id"]:
                raise ValueError(
                    f"added_tokens gives {entry['content']!r} the id {entry['id']}, "
                    f"but in the vocabulary its id is {given}"
                )
        falls_back = '"ByteFallback"' in json.dumps(content.get("decoder"))
        self._bytes = np.array(
            [i for token, i in vocabulary.items() if falls_back and BYTE.fullmatch(token)], np.int32
        )
        check_vocabulary(self.encode(""), self.n_vocab)

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        """Return the ids of a text, with the special tokens that the tokenizer adds to every text.

        Raises:
            ValueError: a text that cannot be encoded, such as one with half a surrogate pair.
        """
        encoded = _explained(
            lambda: self._tokenizer.encode(text),
            f"cannot encode the text that begins {text[:40]!r}",
        )
        return np.array(encoded.ids, np.int32)

    def decode(self, tokens: Int[np.ndarray, " t"]) -> str:
        """Return the text of ids, with special tokens; bytes that are not valid UTF-8 become U+FFFD.

        The -1s that `generate` returns after a stop are dropped.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        tokens = without_padding(tokens)
        check_vocabulary(tokens, self.n_vocab)
        ids = tokens.tolist()
        return _explained(
            lambda: self._tokenizer.decode(ids, skip_special_tokens=False),
            f"cannot decode the ids that begin {ids[:8]}",
        )

    def unfinished(self, tokens: Int[np.ndarray, " t"]) -> int:
        """Return how many of the last ids have a text that later ids may change: byte tokens at the end.

        A run of byte tokens that is not valid UTF-8 is decoded to one U+FFFD per byte, so that each new byte may
        change the text of the run.
        """
        others = np.flatnonzero(~np.isin(np.asarray(tokens), self._bytes))
        return len(tokens) - (int(others[-1]) + 1 if len(others) else 0)

    def to_json(self) -> str:
        """Return the tokenizer as JSON, which `from_json` reads."""
        return json.dumps({"kind": "subwords", "tokenizer": self.content})


def _library(content: Mapping[str, Any]) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ValueError(
            "a subword tokenizer needs the library `tokenizers`: pip install 'jaxformer[hf]'"
        ) from error
    return _explained(
        lambda: Tokenizer.from_str(json.dumps(content)), "the library `tokenizers` refuses it"
    )


def _explained(call: Callable[[], T], prefix: str) -> T:
    """Return the result of a call into the library; raise all its failures as ValueErrors with this prefix."""
    try:
        return call()
    except BaseException as error:
        # A panic of the library's Rust code does not derive from Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{prefix}: {error}") from error
        raise


def _check_model(model: Any) -> None:
    """Refuse a model that the library would accept without an error, or panic at."""
    if not isinstance(model, Mapping) or not isinstance(model.get("vocab"), (Mapping, Sequence)):
        raise ValueError("a tokenizer.json must have a model with a vocab; one of them is missing")
    if model.get("dropout"):
        raise ValueError(
            f"model.dropout={model['dropout']} makes the tokens of a text random; set it to null"
        )
    vocab = model["vocab"]
    if isinstance(vocab, Mapping):
        if odd := [token for token, i in vocab.items() if type(i) is not int or i < 0]:
            raise ValueError(
                f"model.vocab gives {odd[0]!r} the id {vocab[odd[0]]!r}; ids must be integers from 0"
            )
        if len(set(vocab.values())) != len(vocab):
            raise ValueError(f"model.vocab has two tokens of id {_repeated(vocab.values())}")
        check_merges(model.get("merges") or (), vocab, model.get("continuing_subword_prefix") or "")


def check_merges(merges: Any, vocab: Mapping[str, Any], prefix: str = "") -> None:
    """Check that each merge joins two tokens of the vocabulary to a third.

    Raises:
        ValueError: naming the first merge that does not.
    """
    if not isinstance(merges, (list, tuple)):
        raise ValueError(f"merges is {type(merges).__name__}; it must be a list")
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"merges[{i}] is {merge!r}; it must be a pair of tokens")
        left, right = pair
        if not isinstance(left, str) or not isinstance(right, str):
            raise ValueError(f"merges[{i}] is {merge!r}; it must be a pair of tokens")
        for token in (left, right, left + right.removeprefix(prefix)):
            if token not in vocab:
                raise ValueError(
                    f"merges[{i}] is {merge!r}, but {token!r} is not in the vocabulary"
                )


def _check_ids(vocabulary: Mapping[str, int]) -> int:
    """Return the number of ids n; refuse ids that are not 0 to n - 1, each once."""
    if not vocabulary:
        raise ValueError("the vocabulary is empty")
    ids = set(vocabulary.values())
    if len(ids) != len(vocabulary):
        raise ValueError(f"the vocabulary has two tokens of id {_repeated(vocabulary.values())}")
    if max(ids) + 1 != len(ids):
        hole = next(i for i in range(len(ids)) if i not in ids)
        raise ValueError(
            f"the vocabulary has no token with id {hole}, but one with id {max(ids)}; ids must be 0 to n - 1"
        )
    return len(ids)


def _repeated(ids: Any) -> int:
    ordered = sorted(ids)
    return next(a for a, b in itertools.pairwise(ordered) if a == b)


def bpe(
    vocab: Mapping[str, int],
    merges: Sequence[Any],
    added: Sequence[Mapping[str, Any]],
    **parts: Any,
) -> dict[str, Any]:
    """Return the tokenizer.json of a byte-pair encoding; `parts` are its pipeline and options of its model."""
    pipeline = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {
        "version": "1.0",
        "added_tokens": list(added),
        **{name: parts.pop(name, None) for name in pipeline},
        "model": {"type": "BPE", "vocab": dict(vocab), "merges": list(merges), **parts},
    }


def added_token(content: str, number: int, *, special: bool = True) -> dict[str, Any]:
    """Return an added token, which is recognised anywhere in a text before the text is split."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {
        "id": number,
        "content": content,
        **flags,
        "normalized": not special,
        "special": special,
    }


def template(before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Return the post-processor that adds these tokens before and after every text."""
    single = [
        *({"SpecialToken": {"id": token, "type_id": 0}} for token, _ in before),
        {"Sequence": {"id": "A", "type_id": 0}},
        *({"SpecialToken": {"id": token, "type_id": 0}} for token, _ in after),
    ]
    tokens = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in (*before, *after)}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def byte_level(splits: Sequence[str] = ()) -> dict[str, Any]:
    """Return the pipeline of a byte-level encoding, with GPT-2's pattern or with other patterns to split a text."""
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split_steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in splits
    ]
    steps = [*split_steps, {**step, "use_regex": not splits}]
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {**step, "use_regex": True},
    }


def sentencepiece(scheme: str) -> dict[str, Any]:
    """Return the pipeline of SentencePiece, which writes spaces as `▁` and unknown characters as bytes.

    Args:
        scheme: where a space is added. first: before the text; always: before each part between special tokens;
            never: nowhere.
    """
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if scheme != "never":
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return {
        "pre_tokenizer": metaspace,
        "decoder": {"type": "Sequence", "decoders": steps},
        "byte_fallback": True,
        "fuse_unk": True,
    }
