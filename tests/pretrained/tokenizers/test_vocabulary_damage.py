"""Malformed and damaged tokenizers are refused with an error that names the fault."""
# pyright: reportMissingImports=false

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.pretrained.tokenizers import from_folder, from_gguf
from jaxformer.text.subwords import Subwords, added_token, byte_level, template
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.vocabs import END, SMALL, as_gguf, ours, small, write


def test_truncation_and_padding_are_switched_off(tmp_path: Path):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    pad = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
    }  # fmt: skip
    tokenizer = ours(write(tmp_path, tokenizer=small(truncation=cut, padding=pad)))
    assert tokenizer.encode("abaaba").tolist() == [2, 0, 2, 0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model__vocab": {"a": 0, "b": 2, "ab": 4, END: 3}}, (1, 4)),
        ({"model__vocab": SMALL | {"c": 2}}, (2,)),
        ({"model__vocab": SMALL | {"c": -1}}, ("'c'", -1)),
        ({"model__vocab": SMALL | {"c": True}}, ("'c'", True)),
        ({"model__vocab": SMALL | {"c": "4"}}, ("'c'", "'4'")),
        ({"model__vocab": SMALL | {"c": 2**40}}, ()),
        ({"model__vocab": {}, "added_tokens": [], "model__merges": []}, ()),
        ({"model__vocab": None}, ("model", "vocab")),
        ({"model": None}, ("model", "vocab")),
        ({"model__merges": ["a b", "a c"]}, ("merges[1]", "'a c'", "'c'")),
        ({"model__merges": ["a b", "b a"]}, ("merges[1]", "'b a'", "'ba'")),
        ({"model__merges": ["ab"]}, ("merges[0]", "'ab'")),
        ({"model__merges": [["a", 1]]}, ("merges[0]", ["a", 1])),
        ({"model__merges": "a b"}, ("merges", "str")),
        ({"model__dropout": 0.1}, ("model.dropout=0.1",)),
        ({"model__type": "Odd"}, ()),
        ({"added_tokens": [added_token("new", 7)]}, ("'new'", 7, 4)),
        ({"added_tokens": [added_token("a", 1)]}, ("'a'", 1, 0)),
        ({"added_tokens": {"a": 1}}, ()),
        ({"added_tokens": [{"id": 3}]}, ("content",)),
        ({"post_processor": template([("<s>", 9)], [])}, (9, 0, 4)),
        (byte_level(["("]), ()),
        ({"decoder": 3}, ()),
    ],
)  # fmt: skip
def test_a_malformed_tokenizer_json_is_refused(
    changes: dict[str, Any], named: tuple[object, ...], tmp_path: Path
):
    write(tmp_path, tokenizer=small(**changes))
    with raises(ValueError, tmp_path / "tokenizer.json", *named):
        from_folder(tmp_path)


def g(**changes: Any) -> dict[str, Any]:
    fields = as_gguf(small(), "gpt-2")
    return fields | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "bert"}, ("model", "'bert'", "'llama'")),
        ({"model": 3}, ("model", 3)),
        ({"pre": "it's"}, ("pre", '"it\'s"', "llama-bpe")),
        ({"pre": 3}, ("pre", 3, "str")),
        ({"tokens": None}, ("tokens", "NoneType", "list")),
        ({"tokens": []}, ("tokens",)),
        ({"tokens": ["a", "b", "ab", 3]}, ("tokens[3]", 3, "str")),
        ({"tokens": ["a", "b", "ab", "a"]}, ("tokens", "'a'", 0, 3)),
        ({"merges": None}, ("merges", "NoneType", "list")),
        ({"merges": ["a"]}, ("merges[0]", "'a'")),
        ({"merges": ["a c"]}, ("merges[0]", ("a", "c"), "'c'")),
        ({"token_type": [1]}, ("token_type", 1, 4)),
        ({"token_type": [1, 1, 1, "3"]}, ("token_type[3]", "'3'", "int")),
        ({"bos_token_id": 4}, ("bos_token_id", 4)),
        ({"bos_token_id": "1"}, ("bos_token_id", "'1'", "int")),
        ({"add_bos_token": True}, ("bos_token_id",)),
        ({"add_bos_token": 1}, ("add_bos_token", 1, "bool")),
        ({"model": "llama"}, ("bos_token_id",)),
        ({"pre": "llama-bpe"}, ("bos_token_id",)),
    ],
)  # fmt: skip
def test_malformed_metadata_are_refused(changes: dict[str, Any], named: tuple[object, ...]):
    with raises(ValueError, "here.gguf", *named):
        from_gguf(g(**changes), "here.gguf")


@pytest.mark.parametrize("scores", [None, [0.0], [0.0, 1.0, float("nan"), 2.0], ["a"] * 4])
def test_malformed_scores_are_refused(scores: Any):
    fields = g(model="llama", scores=scores, bos_token_id=0)
    del fields["tokenizer.ggml.merges"]
    with raises(ValueError, "here.gguf", "tokenizer.ggml.scores"):
        from_gguf(fields, "here.gguf")
    assert from_gguf({"general.architecture": "llama"}, "here.gguf") is None


def test_an_id_outside_the_vocabulary_is_refused():
    tokenizer = Subwords(small())
    for tokens in ([4], [-2]):
        with raises(ValueError, tokens[0], 0, 4):
            tokenizer.decode(np.array(tokens))
    with raises(ValueError, repr("\ud800")):
        tokenizer.encode("\ud800")
    word = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}
    with raises(ValueError, "'b'"):
        Subwords({"model": word}).encode("b")


@examples(50)
@given(data=st.data())
def test_a_damaged_file_is_a_value_error_or_a_tokenizer(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    """The damage: truncation, flipped bits, and replaced or deleted bytes."""
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


@examples(50)
@given(data=st.data())
def test_damaged_metadata_is_a_value_error_or_a_tokenizer(data: st.DataObject):
    model = data.draw(st.sampled_from(["gpt2", "llama"]))
    fields = g(model=model, bos_token_id=0, eos_token_id=1, add_bos_token=True, scores=[0.0] * 4)
    odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=3)):
        value = odd
        if isinstance(fields[name], list):
            value |= st.lists(odd, max_size=4) | st.permutations(fields[name])
        fields[name] = data.draw(value)
    try:
        tokenizer = from_gguf(fields, "here.gguf")
    except ValueError as error:
        assert "here.gguf" in str(error)
    else:
        assert tokenizer is None or tokenizer.n_vocab <= 4
