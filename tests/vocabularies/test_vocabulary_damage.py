"""Tokenizers that cannot be: one clear error each, whatever the damage."""
# pyright: reportMissingImports=false

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.subwords import Subwords, added_token, byte_level, template
from jaxformer.vocabularies import from_folder, from_gguf
from tests.helpers.vocabs import END, SMALL, as_gguf, ours, small, write


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


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=100, deadline=None)
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
