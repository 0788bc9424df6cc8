"""Subwords: the ids and texts of `transformers`, from the same folder or GGUF file; what is damaged is named."""

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
        ids = content["model"]["vocab"]
        content["post_processor"] = (
            template([(token, ids[token]) for token in first], []) if first else None
        )
        folder = made[name] = tmp_path_factory.mktemp("checkpoint")
        write(folder, tokenizer=content, config=config, tokenizer_config=beside)
    return made


@pytest.mark.peers
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


@pytest.mark.peers
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


@pytest.mark.peers
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


@pytest.mark.peers
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
    with raises(ValueError, "Bytes", "tokenizer.json", "Subwords"):
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
@examples(40)
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


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with raises(ValueError, "tokenizers", "jaxformer[hf]"):
        Subwords(small())


@pytest.mark.processes
def test_the_library_is_not_imported_before_it_is_needed():
    heavy = ("tokenizers", "gguf", "transformers")
    code = f"import sys, jaxformer.pretrained.tokenizers; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
