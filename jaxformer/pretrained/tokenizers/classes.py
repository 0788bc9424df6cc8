"""What the classes of `transformers` make of a checkpoint's tokenizer files, which is part of its ids."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxformer.pretrained.tokenizers.ggml import SPLITS
from jaxformer.text.subwords import added_token, bpe, byte_level, sentencepiece, template

END = "<|endoftext|>"
PLAIN = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend", "BloomTokenizer")
"""Names of classes that are a tokenizer.json and nothing more."""
CLASSES: dict[str, dict[str, str]] = {
    **{name: {} for name in PLAIN},
    "GPT2Tokenizer": {"bos_token": END, "eos_token": END, "unk_token": END},
    "GPTNeoXTokenizer": {
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END),
        "pad_token": "<|padding|>",
    },
    "Qwen2Tokenizer": {"eos_token": END, "unk_token": END, "pad_token": END},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
}
"""The special tokens that a class of `transformers` has when tokenizer_config.json does not say."""
BYTE_LEVEL = ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer")
USUAL = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "olmo", "olmoe"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("mistral", "mixtral", "olmo2", "olmo3", "phi3", "granite"), PLAIN[0]),
    "stablelm": PLAIN[0],
}
"""The class of a model_type.

Source: transformers 5.23, models/auto/tokenization_auto.py, TOKENIZER_MAPPING_NAMES.
"""
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def class_of(config: Mapping[str, Any], settings: Mapping[str, Any], is_bytes: bool) -> str:
    """The class that reads a checkpoint's tokenizer.

    Source: transformers 5.23, models/auto/tokenization_auto.py, AutoTokenizer.from_pretrained.
    """
    model = config.get("model_type")
    usual = USUAL.get(model) if isinstance(model, str) else None
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    named = named.removesuffix("Fast") if isinstance(named, str) else None
    if (named == "LlamaTokenizer" and is_bytes) or usual in PLAIN:
        return PLAIN[0]
    if usual and model == "qwen2":
        return usual
    return named or usual or PLAIN[0]


def as_class(
    content: dict[str, Any], kind: str, settings: Mapping[str, Any], *, whole: bool
) -> dict[str, Any]:
    """What a class of transformers makes of a tokenizer.json: some have a pipeline of their own.

    Raises:
        ValueError: a class or a setting that is not for such a tokenizer.
    """
    model = part(content, "model")
    if settings.get("clean_up_tokenization_spaces") and model.get("type", "BPE") != "BPE":
        raise ValueError(
            f"tokenizer_config.json has clean_up_tokenization_spaces=true, and the model is {model['type']}; "
            "only for BPE it means nothing"
        )
    if kind in BYTE_LEVEL:
        if kind == "Qwen2Tokenizer" and not whole:
            content |= {"normalizer": {"type": "NFC"}, **byte_level(SPLITS["qwen2"])}
        if kind == "GPTNeoXTokenizer":
            content |= {"normalizer": {"type": "NFC"}, "post_processor": None}
        for step in _steps(content.get("pre_tokenizer")):
            if step.get("type") == "ByteLevel":
                step["add_prefix_space"] = bool(settings.get("add_prefix_space"))
    elif not whole and kind not in PLAIN:
        raise ValueError(f"tokenizer_class={kind!r} needs a tokenizer.json")
    elif kind == "LlamaTokenizer":
        given = settings.get("add_prefix_space")
        first = "always" if settings.get("legacy") else "first"
        pipeline = sentencepiece("never" if given is not None and not given else first)
        content = bpe(
            part(model, "vocab"),
            model.get("merges") or (),
            content.get("added_tokens") or (),
            post_processor=content.get("post_processor"),
            **pipeline,
        )
    return content


def part(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object in a JSON object.

    Raises:
        ValueError: something else is there, or nothing.
    """
    if not isinstance(inner := content.get(name), dict):
        raise ValueError(f"{name} is {type(inner).__name__}, no JSON object")
    return inner


def _steps(step: Any) -> Iterator[dict[str, Any]]:
    if isinstance(step, dict):
        yield step
        for inner in step.get("pretokenizers") or ():
            yield from _steps(inner)


def ends(content: Mapping[str, Any], kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The post-processor with BOS and EOS where tokenizer_config.json asks for them.

    Raises:
        ValueError: one of them is no token.
    """
    ids = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    both = []
    for name in ("bos_token", "eos_token"):
        token = content_of({**CLASSES[kind], **settings}.get(name))
        wanted = settings.get(f"add_{name}") and token is not None
        if wanted and token not in ids:
            raise ValueError(f"tokenizer_config.json adds {name}={token!r}, which is no token")
        both.append([(token, ids[token])] if wanted else [])
    return template(*both)


def content_of(token: Any) -> Any:
    """The text of a token, which may be an object with flags, or None."""
    return token.get("content") if isinstance(token, dict) else token


def add_tokens(content: dict[str, Any], kind: str, settings: Mapping[str, Any]) -> None:
    """Enter the tokens that are found in a text before it is cut: those listed, then those that have a name.

    Raises:
        ValueError: a token whose listed id is not the one that it gets by its place.
    """
    added = {entry["content"]: dict(entry) for entry in content.get("added_tokens") or ()}
    vocab = part(content, "model").get("vocab") or {}
    ids = {entry[0]: i for i, entry in enumerate(vocab)} if isinstance(vocab, list) else vocab

    last = max([len(ids) - 1, *(entry["id"] for entry in added.values())])

    def add(token: Mapping[str, Any]) -> int:
        nonlocal last
        text = token["content"]
        number = added[text]["id"] if text in added else ids.get(text, last + 1)
        last = max(last, number)
        flags = added_token(text, number, special=bool(token.get("special")))
        added[text] = flags | {name: token[name] for name in flags.keys() & token.keys()}
        return number

    listed = settings.get("added_tokens_decoder") or {}
    for number, token in sorted(listed.items(), key=lambda item: int(item[0])):
        if (given := add(token)) != int(number):
            raise ValueError(
                f"the id of {token['content']!r} is listed as {number}; by its place it is {given}"
            )
    known = set(added)
    for token in _named(settings, {k: v for k, v in CLASSES[kind].items() if v in ids}):
        if token["content"] not in known:
            add(token)
    content["added_tokens"] = sorted(added.values(), key=lambda entry: entry["id"])


def _named(settings: Mapping[str, Any], usual: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The tokens that a name is given to, in the order in which transformers looks at them."""
    others = [name for name in settings if name.endswith("_token") and name not in NAMED]
    named = [{**usual, **settings}.get(name) for name in (*NAMED, *others)]
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    for token in (*named, *(more.values() if isinstance(more, dict) else more)):
        if isinstance(token, str):
            yield {"content": token, "special": True}
        elif isinstance(token, dict):
            yield token | {"special": True}
