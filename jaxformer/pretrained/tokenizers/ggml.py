"""The tokenizer in the metadata of a GGUF file, under the names that llama.cpp gives its parts."""

from collections.abc import Mapping
from typing import Any

from jaxformer.text.subwords import Subwords, added_token, bpe, byte_level, sentencepiece, template

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CASELESS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ONE, THREE = CASELESS.replace("NUMBER", r"\p{N}"), CASELESS.replace("NUMBER", r"\p{N}{1,3}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), (WORDS,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone"), (r"\p{N}", WORDS)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), (ONE,)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"), (THREE,)),
    "tekken": (TEKKEN,),
}
"""By tokenizer.ggml.pre, the patterns that cut a text, one after the other.

Source: llama.cpp, src/llama-vocab.cpp, llm_tokenizer_bpe; but `default` is GPT-2's, which it stands for.
"""
WHOLE_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")
"""Those that look a piece up before they merge, and begin a text with BOS unless the file says otherwise."""
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Values of tokenizer.ggml.token_type."""


def from_gguf(fields: Mapping[str, Any], path: Any) -> Subwords | None:
    """The tokenizer that a GGUF file's metadata describes, or None where it describes none.

    Texts are cut as llama.cpp cuts them, and tokens of the types control and user-defined are found in them.

    Args:
        fields: names and values, as plain strings, numbers and lists.
        path: of the file, for errors.

    Raises:
        ValueError: metadata of a kind that is not known here, or that contradicts itself.

    >>> parts = {"model": "gpt2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
    >>> fields = {f"tokenizer.ggml.{name}": part for name, part in parts.items()}
    >>> from_gguf(fields, "model.gguf").encode("abb")
    array([2, 1], dtype=int32)
    """
    model = fields.get("tokenizer.ggml.model")
    if model in (None, "no_vocab", "none"):
        return None
    if model not in ("gpt2", "llama"):
        raise ValueError(
            f"{path}: tokenizer.ggml.model is {model!r}; read here are the byte-pair encodings 'gpt2' and 'llama'"
        )
    try:
        return Subwords(_byte_level(fields) if model == "gpt2" else _sentencepiece(fields))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _byte_level(fields: Mapping[str, Any]) -> dict[str, Any]:
    pre = _one(fields, "pre", str, "default")
    if pre not in SPLITS:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}; known here are {', '.join(SPLITS)}")
    tokens, merges = _tokens(fields), _list(fields, "merges", str)
    return bpe(
        {token: i for i, token in enumerate(tokens)},
        [_pair(merge, i) for i, merge in enumerate(merges)],
        _added(fields, tokens),
        post_processor=_ends(fields, tokens, begin=pre in WHOLE_FIRST),
        ignore_merges=pre in WHOLE_FIRST,
        **byte_level(SPLITS[pre]),
    )


def _sentencepiece(fields: Mapping[str, Any]) -> dict[str, Any]:
    tokens = _tokens(fields)
    pipeline = sentencepiece("first" if _one(fields, "add_space_prefix", bool, True) else "never")
    gemma = fields.get("general.architecture") in ("gemma", "gemma2", "gemma3")
    if gemma:
        tokens = ["▁" * len(token) if token.strip(" ") == "" else token for token in tokens]
        split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
        pipeline = sentencepiece("never") | {
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": split | {"invert": False},
            "unk_token": _named(fields, tokens).get("unknown_token_id", (None, 0))[0],
        }
    vocab = _numbered(tokens)
    if "tokenizer.ggml.merges" in fields:
        merges: list[Any] = [_pair(m, i) for i, m in enumerate(_list(fields, "merges", str))]
    else:
        scores = _list(fields, "scores", float, len(tokens))
        # Gemma's scores are not in the order of its merges; its ids are.
        merges = merges_of(vocab, [-i for i in range(len(tokens))] if gemma else scores)
    added = _added(fields, tokens)
    post = _ends(fields, tokens, begin=True)
    return bpe(vocab, merges, added, post_processor=post, **pipeline)


def merges_of(vocab: Mapping[str, int], scores: Any) -> list[tuple[str, str]]:
    """The merges that scores stand for: all pairs of tokens that make a token, those of high scores first.

    Source: transformers 5.23, tokenization_utils_base.py, generate_merges.

    >>> merges_of({"a": 0, "b": 1, "ab": 2, "aba": 3}, [0, 0, -2.0, -1.0])
    [('ab', 'a'), ('a', 'b')]
    """
    merges = []
    for (token, _), score in zip(vocab.items(), scores, strict=True):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [(left, right) for left, right in cuts if left in vocab and right in vocab]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges += [(score, left, right) for left, right in pairs]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]


def _one(fields: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = fields.get(f"tokenizer.ggml.{name}", default)
    if type(value) is not kind and value is not default:
        raise ValueError(f"tokenizer.ggml.{name} is {value!r}, no {kind.__name__}")
    return value


def _list(fields: Mapping[str, Any], name: str, kind: type, n: int | None = None) -> list[Any]:
    values = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"tokenizer.ggml.{name} is {type(values).__name__}, no list")
    kinds = (int, float) if kind is float else (kind,)
    for i, value in enumerate(values):
        if type(value) not in kinds or value != value:  # NaN
            raise ValueError(f"tokenizer.ggml.{name}[{i}] is {value!r}, no {kind.__name__}")
    if n is not None and len(values) != n:
        raise ValueError(f"tokenizer.ggml.{name} has {len(values)} entries for {n} tokens")
    return list(values)


def _tokens(fields: Mapping[str, Any]) -> list[str]:
    tokens = _list(fields, "tokens", str)
    if not tokens:
        raise ValueError("tokenizer.ggml.tokens is empty")
    _numbered(tokens)
    return tokens


def _numbered(tokens: list[str]) -> dict[str, int]:
    vocab: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if vocab.setdefault(token, i) != i:
            raise ValueError(f"tokenizer.ggml.tokens has {token!r} at {vocab[token]} and at {i}")
    return vocab


def _pair(merge: str, i: int) -> tuple[str, str]:
    rest, blank, right = merge[1:].partition(" ")
    if not blank or not right:
        raise ValueError(f"tokenizer.ggml.merges[{i}] is {merge!r}, not two tokens")
    return merge[:1] + rest, right


def _named(fields: Mapping[str, Any], tokens: list[str]) -> dict[str, tuple[str, int]]:
    """The tokens with a role, and their ids."""
    found = {}
    for name in ("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"):
        number = _one(fields, name, int, None)
        if number is None:
            continue
        if not 0 <= number < len(tokens):
            raise ValueError(f"tokenizer.ggml.{name} is {number}, of {len(tokens)} tokens")
        found[name] = (tokens[number], number)
    return found


def _added(fields: Mapping[str, Any], tokens: list[str]) -> list[dict[str, Any]]:
    types = [NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in fields:
        types = _list(fields, "token_type", int, len(tokens))
    spelled = _list(fields, "tokens", str)
    added = {
        number: added_token(token, number) for token, number in _named(fields, tokens).values()
    }
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if number in added or token != spelled[number] or not token:
            continue
        if kind in (CONTROL, USER_DEFINED):
            entry = added_token(token, number, special=kind == CONTROL)
            added[number] = entry | {"normalized": False}
    return [added[number] for number in sorted(added)]


def _ends(fields: Mapping[str, Any], tokens: list[str], *, begin: bool) -> dict[str, Any]:
    """What a text begins and ends with."""
    named = _named(fields, tokens)

    def end(flag: str, name: str, default: bool) -> list[tuple[str, int]]:
        if not _one(fields, flag, bool, default):
            return []
        if name not in named:
            raise ValueError(f"a text gets the token tokenizer.ggml.{name}, which is not there")
        return [named[name]]

    first, last = (
        end("add_bos_token", "bos_token_id", begin),
        end("add_eos_token", "eos_token_id", False),
    )
    return template(first, last)
