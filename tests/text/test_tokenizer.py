"""Tokenizers decode what they encode, stream text correctly, and refuse unknown entries."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import Bytes, Characters, Words, generate, stream_text
from jaxformer.text.tokenizer import Tokenizer, from_json
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.models import SEED, random_params

LETTERS = st.characters(exclude_categories=["Cs"])


def check(tokenizer: Tokenizer, text: str, decoded: str) -> None:
    """The ids are in the vocabulary and decode to the text, and a saved tokenizer gives the same ids."""
    assert isinstance(tokenizer, Tokenizer)
    tokens = tokenizer.encode(text)
    assert ((tokens >= 0) & (tokens < tokenizer.n_vocab)).all()
    assert tokenizer.decode(tokens) == decoded
    np.testing.assert_array_equal(from_json(tokenizer.to_json()).encode(text), tokens)


@given(text=st.text(LETTERS))
def test_decode_undoes_encode(text: str):
    check(Bytes(), text, text)
    check(Characters.of(text or "a"), text, text)


@given(
    words=st.lists(st.sampled_from(["a", "the", "Cat", "cat", "é", "."]), min_size=1),
    gap=st.sampled_from([" ", "\n", " \t "]),
)
def test_words_come_back_with_one_space_between_them(words: list[str], gap: str):
    text = gap.join(words)
    check(Words.of(text), text, " ".join(words))


def cut(data: st.DataObject, tokens: np.ndarray) -> list[np.ndarray]:
    """Cut tokens into pieces, some of which may be empty."""
    places = data.draw(st.lists(st.integers(0, len(tokens)), max_size=12))
    return np.split(tokens, sorted(places))


BYTES = st.lists(
    st.one_of(
        st.text(LETTERS, min_size=1, max_size=3).map(str.encode),
        st.sampled_from("é€😀\ufffd").map(str.encode),
        st.binary(min_size=1, max_size=3),
        st.sampled_from([b"\xf0\x9f\x98", b"\xe2\x82", b"\xc3", b"\x80" * 6, b"\xed\xa0\x80"]),
    )
).map(b"".join)


@examples(50)
@given(content=BYTES, data=st.data())
def test_the_parts_of_streamed_bytes_join_to_the_text_of_all(content: bytes, data: st.DataObject):
    tokens = np.frombuffer(content, np.uint8).astype(np.int32)
    pieces = cut(data, tokens)
    assert "".join(stream_text(Bytes(), pieces)) == Bytes().decode(tokens)
    whole = content.decode("utf-8", errors="ignore")
    if whole.encode() == content:  # valid UTF-8: no part contains an incomplete character
        assert all(part in whole for part in stream_text(Bytes(), pieces))


@pytest.mark.parametrize("tokenizer", [Characters("ab\ufffdé"), Words(["a", "the", "é", "\ufffd"])])
@given(tokens=st.lists(st.integers(0, 3)), data=st.data())
def test_the_parts_of_a_streamed_text_join_to_the_text_of_all_tokens(
    tokenizer: Tokenizer, tokens: list[int], data: st.DataObject
):
    ids = np.array(tokens, np.int32)
    assert "".join(stream_text(tokenizer, cut(data, ids))) == tokenizer.decode(ids)


def test_streaming_holds_back_at_most_one_character():
    content = "né€😀!".encode()
    seen = []
    for end in range(len(content) + 1):
        text = stream_text(Bytes(), iter([np.array([byte]) for byte in content[:end]]))
        seen.append("".join(part for part in text if part != "\ufffd"))
    assert seen == [content[:end].decode(errors="ignore") for end in range(len(content) + 1)]


def test_an_unknown_word_is_an_error_with_its_position():
    with raises(ValueError, "'dog'", 1, 3, "'cat sat the'"):
        Words.of("the cat sat").encode("the dog sat")


@pytest.mark.parametrize(
    ("kind", "vocabulary"),
    [(Words, []), (Words, ["a", "b", "a"]), (Words, ["a b"]), (Words, [""]), (Words, ["a\n"]),
     (Characters, "aba"), (Characters, "")],
)  # fmt: skip
def test_a_malformed_vocabulary_is_refused(kind: Any, vocabulary: Any):
    with raises(ValueError, f"{kind.__name__}.of"):
        kind(vocabulary)


@pytest.mark.parametrize(("kind", "text"), [(Words, " \n"), (Characters, "")])
def test_a_text_without_entries_is_refused(kind: Any, text: str):
    with raises(ValueError):
        kind.of(text)


def test_an_unknown_character_is_an_error_with_its_position():
    with raises(ValueError, "'x'", 2, 3, "'abn'"):
        Characters.of("banana").encode("baxa")


@pytest.mark.parametrize("tokenizer", [Characters("abc"), Words(["a", "b", "c"]), Bytes()])
def test_the_padding_after_a_stop_is_not_decoded(tokenizer: Tokenizer):
    assert tokenizer.decode(np.array([0, 2, -1, -1])) == tokenizer.decode(np.array([0, 2]))
    assert tokenizer.decode(np.array([-1, -1])) == ""
    with raises(ValueError, "token -1", "position 1", tokenizer.n_vocab):
        tokenizer.decode(np.array([0, -1, 2, -1]))
    with raises(ValueError, "token -2", "position 1"):
        tokenizer.decode(np.array([0, -2]))


def test_a_stopped_text_is_decoded():
    tokenizer, params = Characters("abcdefghijk"), random_params(SEED)
    prompt, key = np.array([1, 2]), jax.random.key(0)
    tokens = np.asarray(generate(params, SEED, prompt, 5, key).tokens)
    stopped = np.asarray(generate(params, SEED, prompt, 5, key, stop=int(tokens[0])).tokens)
    assert stopped[-1] == -1
    assert tokenizer.decode(stopped) == tokenizer.decode(tokens)[:1]


@pytest.mark.parametrize("tokens", [[3], [-2]])
def test_an_id_outside_the_vocabulary_is_refused(tokens: list[int]):
    for tokenizer in (Characters.of("abc"), Words.of("a b c")):
        with raises(ValueError, tokens[0], 3):
            tokenizer.decode(np.array(tokens))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"kind": "bpe"}', '{"kind": "characters"}', '{"kind": "words", "vocabulary": [1, 2]}'],
)  # fmt: skip
def test_json_that_is_not_a_tokenizer_is_refused(text: str):
    with raises(ValueError, "characters", "subwords", repr(text)):
        from_json(text)
