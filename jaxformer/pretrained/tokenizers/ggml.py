"""The tokenizer in the metadata of a GGUF file."""

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
"""The patterns that split a text, applied one after another, by tokenizer.ggml.pre.

Source: llama.cpp, src/llama-vocab.cpp, llm_tokenizer_bpe; except that `default` is GPT-2's pattern here.
"""
IGNORE_MERGES = ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")
"""The values of tokenizer.ggml.pre that look a piece up in the vocabulary before merging, and add BOS by default."""
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Values of tokenizer.ggml.token_type."""


def from_gguf(fields: Mapping[str, Any], path: Any) -> Subwords | None:
    """Return the tokenizer that a GGUF file's metadata describe; None: they describe none.

    Texts are split as in llama.cpp, and control and user-defined tokens are recognised in them.

    Args:
        fields: names and values, as plain strings, numbers and lists.
        path: of the file, for error messages.

    Raises:
        ValueError: an unsupported kind of tokenizer, or malformed or contradictory metadata.

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
            f"{path}: tokenizer.ggml.model is {model!r}; jaxformer reads the byte-pair encodings 'gpt2' and 'llama'"
        )
    try:
        return Subwords(_byte_level(fields) if model == "gpt2" else _sentencepiece(fields))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _byte_level(fields: Mapping[str, Any]) -> dict[str, Any]:
    pre = _one(fields, "pre", str, "default")
    if pre not in SPLITS:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}; jaxformer supports {', '.join(SPLITS)}")
    tokens, merges = _tokens(fields), _list(fields, "merges", str)
    return bpe(
        {token: i for i, token in enumerate(tokens)},
        [_pair(merge, i) for i, merge in enumerate(merges)],
        _added(fields, tokens),
        post_processor=_post_processor(fields, tokens, add_bos=pre in IGNORE_MERGES),
        ignore_merges=pre in IGNORE_MERGES,
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
        # In Gemma the ids give the order of the merges, not the scores.
        merges = merges_of(vocab, [-i for i in range(len(tokens))] if gemma else scores)
    added = _added(fields, tokens)
    post = _post_processor(fields, tokens, add_bos=True)
    return bpe(vocab, merges, added, post_processor=post, **pipeline)


def merges_of(vocab: Mapping[str, int], scores: Any) -> list[tuple[str, str]]:
    """Return the merges that scores imply: all pairs of tokens that join to a token, highest score first.

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
        raise ValueError(f"tokenizer.ggml.{name} is {value!r}; it must be of type {kind.__name__}")
    return value


def _list(fields: Mapping[str, Any], name: str, kind: type, n: int | None = None) -> list[Any]:
    values = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"tokenizer.ggml.{name} is {type(values).__name__}; it must be a list")
    kinds = (int, float) if kind is float else (kind,)
    for i, value in enumerate(values):
        if type(value) not in kinds or value != value:  # NaN
            raise ValueError(
                f"tokenizer.ggml.{name}[{i}] is {value!r}; it must be of type {kind.__name__}"
            )
    if n is not None and len(values) != n:
        raise ValueError(
            f"tokenizer.ggml.{name} has {len(values)} entries; it must have one for each of the {n} tokens"
        )
    return list(values)


def _tokens(fields: Mapping[str, Any]) -> list[str]:
    tokens = _list(fields, "tokens", str)
    if not tokens:
        raise ValueError("tokenizer.ggml.tokens is empty; it must list the vocabulary")
    _numbered(tokens)
    return tokens


def _numbered(tokens: list[str]) -> dict[str, int]:
    vocab: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if vocab.setdefault(token, i) != i:
            raise ValueError(
                f"tokenizer.ggml.tokens has {token!r} twice, at {vocab[token]} and at {i}"
            )
    return vocab


def _pair(merge: str, i: int) -> tuple[str, str]:
    rest, blank, right = merge[1:].partition(" ")
    if not blank or not right:
        raise ValueError(f"tokenizer.ggml.merges[{i}] is {merge!r}; it must be two tokens")
    return merge[:1] + rest, right


def _named(fields: Mapping[str, Any], tokens: list[str]) -> dict[str, tuple[str, int]]:
    """Return the tokens with a role, such as BOS, and their ids."""
    found = {}
    for name in ("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"):
        number = _one(fields, name, int, None)
        if number is None:
            continue
        if not 0 <= number < len(tokens):
            raise ValueError(
                f"tokenizer.ggml.{name} is {number}; it must be below the number of tokens, {len(tokens)}"
            )
        found[name] = (tokens[number], number)
    return found


def _added(fields: Mapping[str, Any], tokens: list[str]) -> list[dict[str, Any]]:
    """Return the tokens that are recognised before a text is split: control and user-defined ones."""
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


def _post_processor(
    fields: Mapping[str, Any], tokens: list[str], *, add_bos: bool
) -> dict[str, Any]:
    """Return the post-processor that adds BOS and EOS; `add_bos` is the default of add_bos_token."""
    named = _named(fields, tokens)

    def added(flag: str, name: str, default: bool) -> list[tuple[str, int]]:
        if not _one(fields, flag, bool, default):
            return []
        if name not in named:
            raise ValueError(f"tokenizer.ggml.{name} is missing, but the tokenizer adds this token")
        return [named[name]]

    before = added("add_bos_token", "bos_token_id", add_bos)
    return template(before, added("add_eos_token", "eos_token_id", False))
