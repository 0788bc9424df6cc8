"""Tokenizers: what goes in comes out, and what cannot go in is named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import Bytes, Characters, Words, stream_text
from jaxformer.text.tokenizer import Tokenizer, from_json
from tests.helpers.errors import raises
from tests.helpers.examples import examples

texts = st.text(min_size=1, max_size=40)
words = st.lists(st.sampled_from(["a", "the", "Cat", "cat", "é", "."]), min_size=1)


@given(text=texts)
def test_decode_undoes_encode(text: str):
    for tokenizer in (Characters.of(text), Bytes() if text.isascii() else Characters.of(text)):
        assert isinstance(tokenizer, Tokenizer)
        tokens = tokenizer.encode(text)
        assert ((tokens >= 0) & (tokens < tokenizer.n_vocab)).all()
        assert tokenizer.decode(tokens) == text


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_take_any_text(text: str):
    assert Bytes().decode(Bytes().encode(text)) == text


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_json_round_trip(text: str):
    for tokenizer in (Characters.of(text), Bytes()):
        again = from_json(tokenizer.to_json())
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


def cut(data: st.DataObject, tokens: np.ndarray) -> list[np.ndarray]:
    """In pieces, some of them perhaps empty."""
    places = data.draw(st.lists(st.integers(0, len(tokens)), max_size=12))
    return np.split(tokens, sorted(places))


BYTES = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3).map(str.encode),
        st.sampled_from("é€😀\ufffd").map(str.encode),
        st.binary(min_size=1, max_size=3),
        st.sampled_from([b"\xf0\x9f\x98", b"\xe2\x82", b"\xc3", b"\x80" * 6, b"\xed\xa0\x80"]),
    )
).map(b"".join)


@examples(50)
@given(content=BYTES, data=st.data())
def test_a_streamed_text_of_bytes_joined_is_the_text_of_them_all(
    content: bytes, data: st.DataObject
):
    tokens = np.frombuffer(content, np.uint8).astype(np.int32)
    pieces = cut(data, tokens)
    assert "".join(stream_text(Bytes(), pieces)) == Bytes().decode(tokens)
    whole = content.decode("utf-8", errors="ignore")
    if whole.encode() == content:  # then no half of a character is ever shown
        assert all(part in whole for part in stream_text(Bytes(), pieces))


@pytest.mark.parametrize("tokenizer", [Characters("ab\ufffdé"), Words(["a", "the", "é", "\ufffd"])])
@given(tokens=st.lists(st.integers(0, 3)), data=st.data())
def test_a_streamed_text_joined_is_the_text_of_all_tokens(
    tokenizer: Tokenizer, tokens: list[int], data: st.DataObject
):
    ids = np.array(tokens, np.int32)
    assert "".join(stream_text(tokenizer, cut(data, ids))) == tokenizer.decode(ids)


def test_a_streamed_text_lags_behind_by_one_character_at_most():
    content = "né€😀!".encode()
    seen = []
    for end in range(len(content) + 1):
        pieces = iter([np.array([byte]) for byte in content[:end]])
        text = stream_text(Bytes(), pieces)
        seen.append("".join(part for part in text if part != "\ufffd"))
    assert seen == [content[:end].decode(errors="ignore") for end in range(len(content) + 1)]


@given(words=words, gap=st.sampled_from([" ", "\n", " \t "]))
def test_words_come_back_with_one_space_between_them(words: list[str], gap: str):
    tokenizer = Words.of(gap.join(words))
    assert isinstance(tokenizer, Tokenizer)
    tokens = tokenizer.encode(gap.join(words))
    assert ((tokens >= 0) & (tokens < tokenizer.n_vocab)).all()
    assert tokenizer.decode(tokens) == " ".join(words)
    again = from_json(tokenizer.to_json())
    np.testing.assert_array_equal(again.encode(gap.join(words)), tokens)


def test_an_unknown_word_is_named_with_its_place():
    with raises(ValueError, "'dog'", 1, 3, "'cat sat the'"):
        Words.of("the cat sat").encode("the dog sat")


@pytest.mark.parametrize("vocabulary", [[], ["a", "b", "a"], ["a b"], [""], ["a\n"]])
def test_a_vocabulary_is_words_each_once(vocabulary: list[str]):
    with raises(ValueError, "Words.of"):
        Words(vocabulary)
    with raises(ValueError):
        Words.of(" \n")


def test_an_unknown_character_is_named_with_its_place():
    with raises(ValueError, "'x'", 2, 3, "'abn'"):
        Characters.of("banana").encode("baxa")


@pytest.mark.parametrize("tokens", [[3], [-1]])
def test_an_id_outside_the_vocabulary_is_refused(tokens: list[int]):
    for tokenizer in (Characters.of("abc"), Words.of("a b c")):
        with raises(ValueError, tokens[0], 3):
            tokenizer.decode(np.array(tokens))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"kind": "bpe"}',
        '{"kind": "characters"}',
        '{"kind": "words", "vocabulary": [1, 2]}',
    ],
)
def test_json_of_no_tokenizer_is_refused(text: str):
    with raises(ValueError, "characters", "subwords", repr(text)):
        from_json(text)


def test_an_alphabet_has_each_character_once():
    with raises(ValueError, "Characters.of"):
        Characters("aba")
    with raises(ValueError):
        Characters.of("")
