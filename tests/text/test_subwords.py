"""Subwords give the ids and texts of `transformers` for the same folder."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import Bytes, stream_text
from jaxformer.pretrained.tokenizers import from_folder, save_tokenizer
from jaxformer.text.subwords import Subwords, template
from jaxformer.text.tokenizer import Tokenizer, from_json
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.vocabs import (
    END,
    KINDS,
    ODD,
    SMALL,
    TEXTS,
    agree,
    ours,
    peer,
    several,
    small,
    trained,
    write,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (pipeline, special, first, config, beside) in KINDS.items():
        content = trained(pipeline, special)
        begin = [(token, content["model"]["vocab"][token]) for token in first]
        content["post_processor"] = template(begin, []) if begin else None
        folder = made[name] = tmp_path_factory.mktemp("checkpoint")
        write(folder, tokenizer=content, config=config, tokenizer_config=beside)
    return made


@pytest.mark.peers  # transformers 5 changes the pipeline of llama 2
@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"llama 2"}))
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


@pytest.mark.peers
@pytest.mark.parametrize("model", ["gpt2", "qwen3"])
@pytest.mark.parametrize(
    "beside",
    [{"tokenizer_config": {"add_bos_token": True, "bos_token": END}}, {"special_tokens_map": {"pad_token": "<pad>"}}],
)  # fmt: skip
def test_older_formats_give_the_ids_of_transformers(
    model: str, beside: dict[str, Any], folders: dict[str, Path], tmp_path: Path
):
    content = json.loads((folders[model] / "tokenizer.json").read_text())["model"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in content["merges"]), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write(tmp_path, vocab=content["vocab"], config={"model_type": model}, **beside)
    other, tokenizer = peer(tmp_path), ours(tmp_path)
    for text in (ODD, "the cat<pad>", f" {END} a", ""):
        agree(tokenizer, other, text)


@pytest.mark.peers
def test_older_formats_that_transformers_cannot_read_are_refused(tmp_path: Path):
    pytest.importorskip("transformers")
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    write(tmp_path, config={"model_type": "llama"})
    with raises(ValueError, tmp_path / "tokenizer.model", "transformers"):
        from_folder(tmp_path)


def test_older_formats_without_transformers_are_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert from_folder(tmp_path) is None
    write(tmp_path, vocab=SMALL)
    with raises(ValueError, tmp_path, "vocab.json", "tokenizer.json", "transformers"):
        from_folder(tmp_path)


@pytest.mark.peers
@pytest.mark.parametrize("name", KINDS)
def test_jaxformer_and_transformers_read_a_saved_tokenizer(
    folders: dict[str, Path], name: str, tmp_path: Path
):
    tokenizer = ours(folders[name])
    save_tokenizer(tmp_path / "new", tokenizer)
    agree(tokenizer, peer(tmp_path / "new"), ODD)
    agree(tokenizer, peer(write(tmp_path / "new", config=KINDS[name][3])), ODD)
    for again in (ours(tmp_path / "new"), from_json(tokenizer.to_json())):
        np.testing.assert_array_equal(again.encode(ODD), tokenizer.encode(ODD))
        assert again.n_vocab == tokenizer.n_vocab
    with raises(ValueError, "Bytes", "tokenizer.json", "Subwords"):
        save_tokenizer(tmp_path, Bytes())


cached = functools.cache(ours)
PIPELINES = {name: str(pipeline) for name, (pipeline, *_) in KINDS.items()}


@pytest.mark.parametrize(
    "name", [name for name, text in PIPELINES.items() if "ByteLevel" in text and "NFC" not in text]
)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_level_tokenizers_decode_what_they_encode(
    folders: dict[str, Path], name: str, text: str
):
    tokenizer = cached(folders[name])
    assert tokenizer.decode(tokenizer.encode(text)) == "".join(KINDS[name][2]) + text


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@examples(40)
def test_the_parts_of_a_streamed_text_join_to_the_text_of_all_tokens(
    folders: dict[str, Path], name: str, data: st.DataObject
):
    tokenizer = cached(folders[name])
    n_vocab = tokenizer.n_vocab
    some = st.lists(
        st.integers(0, min(n_vocab, 270) - 1) | st.integers(0, n_vocab - 1), max_size=20
    )
    whole = TEXTS.map(lambda text: tokenizer.encode(text).tolist())
    ids = np.array(data.draw(some | whole), np.int32)
    places = data.draw(st.lists(st.integers(0, len(ids))) | st.just(list(range(len(ids)))))
    assert "".join(stream_text(tokenizer, np.split(ids, sorted(places)))) == tokenizer.decode(ids)


def test_streaming_holds_back_only_trailing_byte_tokens(folders: dict[str, Path]):
    tokenizer = cached(folders["llama 2"])
    ids = tokenizer.encode("the 🙂é cat")
    parts = list(stream_text(tokenizer, np.split(ids, len(ids))))
    assert "".join(parts) == tokenizer.decode(ids)
    assert any(part.startswith("🙂é") for part in parts)
    assert tokenizer.unfinished(ids) == 0
    assert tokenizer.unfinished(tokenizer.encode("the 🙂")) == 4


@pytest.mark.parametrize("name", KINDS)
def test_the_padding_after_a_stop_is_not_decoded(folders: dict[str, Path], name: str):
    tokenizer = cached(folders[name])
    ids = tokenizer.encode("the cat")
    padded = np.concatenate([ids, np.full(3, -1, np.int32)])
    assert tokenizer.decode(padded) == tokenizer.decode(ids)
    with raises(ValueError, "token -1", "position 0", tokenizer.n_vocab):
        tokenizer.decode(np.concatenate([padded[-1:], ids]))
    with raises(ValueError, "token -2"):
        tokenizer.decode(np.concatenate([ids, padded[-1:] - 1]))


def test_without_the_tokenizers_library_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with raises(ValueError, "tokenizers", "jaxformer[hf]"):
        Subwords(small())


@pytest.mark.processes
def test_optional_libraries_are_not_imported_before_they_are_needed():
    heavy = ("tokenizers", "gguf", "transformers")
    code = f"import sys, jaxformer.pretrained.tokenizers; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
