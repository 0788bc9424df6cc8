"""Subwords: a text has the same tokens at once and in pieces, with special tokens only around the text."""

from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxformer import Bytes, Characters, forward, identity
from jaxformer.text.subwords import Subwords, byte_level, sentencepiece, template
from tests.helpers.models import SEED, random_params
from tests.helpers.tuned import TEXT, subwords
from tests.helpers.vocabs import CORPUS, ODD, gemma, prepended, trained
from train.data import encoding, tokenfile
from train.data.corpora import load_corpus
from train.data.encoding import encode_pieces, frame, opening, sayable, vocabulary
from train.data.tokenfile import write_tokens

BEGUN = {"post_processor": template([("<s>", 0)], [])}
CLOSED = {"post_processor": template([("<s>", 0)], [("</s>", 1)])}
KINDS = {
    "gpt2": lambda: trained(byte_level(), []),
    "bos and eos": lambda: trained(byte_level() | CLOSED, ["<s>", "</s>"]),
    "llama2": lambda: trained(prepended() | BEGUN, ["<s>", "<unk>"]),
    "sentencepiece": lambda: trained(sentencepiece("first") | BEGUN, ["<s>"]),
    "gemma": lambda: trained(gemma() | BEGUN, ["<s>", "<unk>"]),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Subwords:
    return Subwords(KINDS[request.param]())


WORDS = ("the", "cat's", "12", "é", "🙂", "你好", "<s>", " ", "  ", "\n", "\n\n\t", "\r\n", "it")

TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=120).map("".join)


@given(text=TEXTS, size=st.integers(1, 30))
@example(text="thethethethethe\r\nthe", size=1)
@example(text="thethethethethe\n\nthethethethe", size=1)
def test_pieces_give_the_same_tokens(tokenizer: Subwords, monkeypatch, text: str, size: int):
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "PAST", 12)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        parts = list(encode_pieces(tokenizer, pieces, 20))
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in parts]), tokenizer.encode(text))
    assert sum(characters for _, characters in parts) == len(text)


def test_a_text_without_spaces_is_held_or_cut_anywhere():
    pieces = ["ACGT" * 100] * 50
    assert list(encoding.blocks(pieces, 1000)) == ["".join(pieces)]
    parts = list(encoding.blocks(pieces, 1000, anywhere=True))
    assert max(map(len, parts)) == 1200
    assert "".join(parts) == "".join(pieces)


def test_a_long_text_is_cut_often(tokenizer: Subwords):
    text = (" ".join(CORPUS) + ODD) * 20
    parts = list(encode_pieces(tokenizer, [text[i : i + 50] for i in range(0, len(text), 50)], 200))
    assert len(parts) > len(text) / 2000
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in parts]), tokenizer.encode(text))


def test_a_frame_has_the_special_tokens_around_a_text(tokenizer: Subwords):
    before, after, plain = frame(tokenizer)
    whole = np.concatenate([before, plain.encode(ODD), after])
    np.testing.assert_array_equal(whole, tokenizer.encode(ODD))
    np.testing.assert_array_equal(opening(tokenizer, ODD), whole[: len(whole) - len(after)])
    assert not len(frame(plain).before)


def test_the_frames_of_some_tokenizers():
    found = {name: frame(Subwords(make())) for name, make in KINDS.items()}
    assert {name: (len(f.before), len(f.after)) for name, f in found.items()} == {
        "gpt2": (0, 0), "bos and eos": (1, 1), "llama2": (1, 0), "sentencepiece": (1, 0), "gemma": (1, 0),
    }  # fmt: skip
    assert frame(Bytes()).plain.encode("é").tolist() == [195, 169]
    assert list(encode_pieces(subwords(), [], 9)) == []


def test_a_token_file_holds_the_same_tokens(tokenizer: Subwords, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tokenfile, "BLOCK", 300)
    text = " ".join(CORPUS) * 20
    pieces = [text[i : i + 100] for i in range(0, len(text), 100)]
    file = write_tokens(tmp_path / "x.tokens", tokenizer, pieces)
    np.testing.assert_array_equal(file.tokens, tokenizer.encode(text))
    assert file.n_characters == len(text)
    assert vocabulary(file.tokenizer) == vocabulary(tokenizer)


def test_a_corpus_is_one_text_that_is_cut_between_tokens(tokenizer: Subwords, tmp_path: Path):
    text = " ".join(CORPUS).replace("\r", "") * 10
    (tmp_path / "x.txt").write_text(text)
    corpus = load_corpus(str(tmp_path / "x.txt"), tokenizer, 8)
    whole = np.concatenate([corpus.train, corpus.validation])
    np.testing.assert_array_equal(whole, tokenizer.encode(text))
    assert len(corpus.train) == len(whole) * 9 // 10
    assert corpus.characters_per_token == pytest.approx(len(text) / len(whole), rel=0.2)


def test_different_vocabularies_are_distinguished():
    assert vocabulary(subwords()) == vocabulary(subwords(ends=True))
    others = [subwords(), Characters("ab"), Characters("ba"), Bytes()]
    assert all(vocabulary(a) != vocabulary(b) for a, b in pairwise(others))


def test_a_model_never_generates_entries_without_a_token():
    small = Characters("abc")
    edit = sayable(SEED, small)
    logits = forward(random_params(SEED), SEED, jnp.arange(3), edit=edit).logits
    assert bool(jnp.isneginf(logits[:, 3:]).all())
    assert bool(jnp.isfinite(logits[:, :3]).all())
    assert sayable(SEED, Characters("abcdefghijk")) is identity
    assert sayable(SEED, small) is edit  # another edit would recompile


def test_the_text_of_the_tests_has_tokens():
    assert subwords().decode(subwords().encode(TEXT)) == f"<s>{TEXT}"
    assert jax.numpy.asarray(subwords().encode(TEXT)).max() < 24
