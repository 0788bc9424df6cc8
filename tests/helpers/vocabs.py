"""Small subword tokenizers of every kind, trained on the spot, and transformers beside them."""
# pyright: reportMissingImports=false

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from jaxformer.pretrained.tokenizers import from_folder
from jaxformer.text.subwords import Subwords, added_token, bpe, byte_level, sentencepiece
from tests.helpers.examples import examples

CORPUS = [
    "the cat sat on the mat, the cat's hat isn't flat; they'll see we've 12 cats and 345 hats.",
    "def f(x):\n    return x ** 2  # squared\n\n\tfor i in range(10):\n\t\tprint(i)\r\n",
    "été é naïve café 你好，世界 你好 مرحبا بالعالم 🙂🙂 🏽 <|endoftext|>",
]
ODD = (
    "def f(x):\n\treturn x ** 2  # é e\u0301 🙂🏽‍🚀 مرحبا 你好，世界\r\n\r\n\n\n\n  a\u00a0b\u3000c  the  12 cats   \n"
    "<|im_start|>user\nthe cat<|im_end|>\n <s>[INST] <bos>hi </s><unk> ▁ <0x0A> Ġ 345\n    67 trailing  "
)
END = "<|endoftext|>"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.lists(
    st.sampled_from(
        [
            "the",
            " cat",
            "  ",
            "\n",
            "12",
            "é",
            "e\u0301",
            "🙂",
            "你好",
            "\t",
            END,
            "<s>",
            "</s>",
            "<pad>",
            "\r\n",
            "'ll",
            "\u00a0",
        ]
    )
).map("".join)


def trained(pipeline: Mapping[str, Any], special: list[str], size: int = 400) -> dict[str, Any]:
    """The tokenizer.json of a byte-pair encoding trained on the spot."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers

    is_bytes = "ByteLevel" in json.dumps(pipeline)
    start = bpe({}, [], [], **pipeline)
    if not is_bytes:
        start["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": True,
        }
        start["normalizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(start))
    letters = pre_tokenizers.ByteLevel.alphabet() if is_bytes else []
    names = special if is_bytes else [*special, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=size if is_bytes else size + 256,
        special_tokens=names,
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS[:2] * 3 + (CORPUS if is_bytes else []), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    added = [added_token(token, model["vocab"][token]) for token in special]
    flags = dict(pipeline)
    return bpe(model["vocab"], model["merges"], added, **flags)


def prepended() -> dict[str, Any]:
    """Llama 2's tokenizer.json: the blank comes from a normalizer."""
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    return sentencepiece("first") | {
        "pre_tokenizer": None,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "unk_token": "<unk>",
    }


def gemma() -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    return sentencepiece("never") | {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": split,
        "unk_token": "<unk>",
    }


NFC = {"normalizer": {"type": "NFC"}}
SPM = ["<unk>", "<s>", "</s>"]
KINDS: dict[str, tuple[dict[str, Any], list[str], list[str], dict[str, Any], dict[str, Any]]] = {
    # name: pipeline, special tokens, BOS and the like, config.json, tokenizer_config.json
    "gpt2": (byte_level(), [END], [], {"model_type": "gpt2"}, {}),
    "gpt_neo": (
        byte_level(),
        [END],
        [END],
        {"model_type": "gpt_neo"},
        {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True},
    ),
    "gpt_neox": (
        byte_level() | NFC,
        [END, "<|padding|>"],
        [],
        {"model_type": "gpt_neox"},
        {"tokenizer_class": "GPTNeoXTokenizer"},
    ),
    "qwen2": (
        byte_level([QWEN2]) | NFC,
        [END, "<|im_start|>", "<|im_end|>"],
        [],
        {"model_type": "qwen2"},
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"},
    ),
    "qwen3": (
        byte_level([QWEN2]) | NFC,
        [END, "<|im_start|>", "<|im_end|>"],
        [],
        {"model_type": "qwen3"},
        {"additional_special_tokens": ["<|im_start|>"]},
    ),
    "olmo2": (
        byte_level([LLAMA3]),
        [END, "<|pad|>"],
        [],
        {"model_type": "olmo2"},
        {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|pad|>"},
    ),
    "llama 3": (
        byte_level([LLAMA3]) | {"ignore_merges": True},
        [END, "<s>"],
        ["<s>"],
        {"model_type": "llama"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    ),
    "llama 3, as LlamaTokenizer": (
        byte_level([LLAMA3]),
        [END, "<s>"],
        ["<s>"],
        {"model_type": "llama"},
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": True},
    ),
    "llama 2": (
        prepended(),
        SPM,
        ["<s>"],
        {"model_type": "llama"},
        {"tokenizer_class": "LlamaTokenizer", "legacy": False},
    ),
    "mistral": (
        prepended(),
        SPM,
        ["<s>"],
        {"model_type": "mistral"},
        {"tokenizer_class": "LlamaTokenizer", "legacy": False},
    ),
    "metaspace": (
        sentencepiece("always") | {"unk_token": "<unk>"},
        SPM,
        ["<s>"],
        {"model_type": "llama"},
        {},
    ),
    "gemma2": (
        gemma(),
        ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
        ["<bos>"],
        {"model_type": "gemma2"},
        {"tokenizer_class": "GemmaTokenizer"},
    ),
    "gemma3": (
        gemma(),
        ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
        ["<bos>"],
        {"model_type": "gemma3_text"},
        {"tokenizer_class": "GemmaTokenizer"},
    ),
}


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def peer(folder: Path, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(folder, **options)


def ours(folder: Path) -> Subwords:
    tokenizer = from_folder(folder)
    assert isinstance(tokenizer, Subwords)
    return tokenizer


def agree(tokenizer: Subwords, other: Any, text: str):
    ids = tokenizer.encode(text)
    assert ids.tolist() == other.encode(text), text
    assert tokenizer.decode(ids) == other.decode(ids.tolist())


several = examples(40)


SMALL = {"a": 0, "b": 1, "ab": 2, END: 3}


def small(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json, and what stands in it instead, deep down too: model__vocab."""
    content = bpe(SMALL, ["a b"], [added_token(END, 3)], **byte_level())
    for name, value in changes.items():
        place: dict[str, Any] = content
        *way, last = name.split("__")
        for step in way:
            place = place[step]
        place[last] = value
    return content


def as_gguf(content: dict[str, Any], pre: str | None, **more: Any) -> dict[str, Any]:
    """The fields that llama.cpp's converter writes for a tokenizer.json."""
    vocab, special = content["model"]["vocab"], {e["id"] for e in content["added_tokens"]}
    fields: dict[str, Any] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2" if pre else "llama",
        "tokenizer.ggml.tokens": list(vocab),
        "tokenizer.ggml.token_type": [
            3 if i in special else 6 if t[:3] == "<0x" else 1 for t, i in vocab.items()
        ],
    }
    if pre:
        fields |= {
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.merges": [" ".join(m) for m in content["model"]["merges"]],
        }
    else:
        fields["tokenizer.ggml.scores"] = [float(-i) for i in range(len(vocab))]
    return fields | more
