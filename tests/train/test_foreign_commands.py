"""Published models in the commands `train.sample`, `train.prepare` and `python -m benchmarks`."""

from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.cases import cases, name_of
from jaxformer import Characters, Config, forward, init, load, load_config, save
from tests.helpers import ggufs
from tests.helpers.errors import check_names
from tests.helpers.families import golden
from tests.helpers.models import CLASSIC, SEED
from tests.helpers.tuned import LETTERS, MERGES, foreign, quantised, subwords, text_at
from train import prepare, sample
from train.data.encoding import opening
from train.data.tokenfile import open_tokens

pytestmark = pytest.mark.usefixtures("standard_promotion")


def with_tokenizer(path: Path) -> Path:
    """Write a GGUF file that contains this tokenizer."""

    def edit(writer: gguf.GGUFWriter) -> None:
        tokens = [*LETTERS, *("".join(pair) for pair in MERGES)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([3, *(1 for _ in tokens[1:])])
        writer.add_token_merges([" ".join(pair) for pair in MERGES])
        writer.add_bos_token_id(0)
        writer.add_add_bos_token(True)

    ggufs.write(path, golden("llama-plain"), edit)
    return path


def greedy(place: Path, text: str, n: int) -> str:
    """Return the argmax of `forward` among vocabulary entries that have a token."""
    params, config, _ = load(place)
    tokens = opening(subwords(), text).tolist()
    begun = len(tokens)
    for _ in range(n):
        logits = forward(params, config, jnp.asarray(tokens)).logits[-1, : subwords().n_vocab]
        tokens.append(int(logits.argmax()))
    assert begun > 1
    return subwords().decode(np.array(tokens[1:]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_foreign_model_continues_a_text(kind: str, tmp_path: Path, capsys):
    place = foreign(tmp_path / "m") if kind == "folder" else with_tokenizer(tmp_path / "m.gguf")
    command = ["--prompt", "the cat", "--n", "12", "--temperature", "0"]
    assert sample.main([str(place), *command]) == 0
    out, err = capsys.readouterr()
    said = greedy(place, "the cat", 12)
    assert out == f"{said}\n"  # without <s>
    check_names(err, "12 tokens")
    stop = said[len("the cat") + 3 : len("the cat") + 5]
    assert sample.main([str(place), *command, "--stop", stop]) == 0
    end = said.index(stop, len("the cat")) + len(stop)
    assert capsys.readouterr().out == f"{said[:end]}\n"


@pytest.mark.slow
def test_without_a_prompt_a_text_begins_with_the_tokenizer_s_first_token(tmp_path: Path, capsys):
    place = foreign(tmp_path / "m")
    command = [str(place), "--n", "5", "--temperature", "0"]
    assert sample.main(command) == 0
    empty = capsys.readouterr().out
    assert sample.main([*command, "--prompt", ""]) == 0
    assert capsys.readouterr().out == empty
    assert len(subwords().encode(empty[:-1])) > 1
    folder, params = tmp_path / "model", init(SEED, jax.random.key(0))
    save(folder, params, SEED, Characters("\nbcdefghijk"))
    assert sample.main([str(folder), "--n", "5"]) == 0
    assert len(capsys.readouterr().out) == 1 + 5 + 1
    save(folder, params, SEED, Characters("abcdefghijk"))
    assert sample.main([str(folder), "--n", "5"]) == 1
    check_names(capsys.readouterr().err, "--prompt")


def test_a_prompt_has_no_token_that_ends_a_text(tmp_path: Path):
    ended = subwords(ends=True)
    assert ended.encode("the cat").tolist() == [*subwords().encode("the cat").tolist(), 0]
    np.testing.assert_array_equal(opening(ended, "the cat"), subwords().encode("the cat"))


def test_a_model_without_a_tokenizer_has_no_text(tmp_path: Path, capsys):
    place = quantised(tmp_path / "m.gguf")
    assert sample.main([str(place), "--prompt", "the"]) == 1
    check_names(capsys.readouterr().err, place)


def test_a_model_without_a_position_table_caches_at_most_1_gib():
    big = Config(
        n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, d_head=64, d_mlp=1536, n_vocab=9
    )
    assert sample.room(big, 4) == 2**30 // (2 * 30 * 3 * 64 * 4)
    assert sample.room(SEED, 4) == sample.AT_ONCE
    none = Config(n_layers=0, d_model=8, n_heads=1, d_head=8, d_mlp=0, n_vocab=9)
    assert sample.room(none, 4) == sample.AT_ONCE


@pytest.mark.parametrize("kind", ["folder", "gguf", "saved", "run"])
def test_a_text_is_prepared_by_a_model_s_tokenizer(kind: str, tmp_path: Path):
    text, place = text_at(tmp_path), tmp_path / "m"
    if kind == "gguf":
        place = with_tokenizer(tmp_path / "m.gguf")
    else:
        foreign(place)
    if kind in ("saved", "run"):
        params, config, tokenizer = load(place)
        place = tmp_path / "saved"
        save(place / "model" if kind == "run" else place, params, config, tokenizer)
    if kind == "run":
        (place / "run.json").write_text('{"corpus_sha256": "", "recipe": {"context": 9}}')
    out = tmp_path / "x.tokens"
    assert prepare.main([str(text), "--tokenizer", str(place), "--out", str(out)]) == 0
    np.testing.assert_array_equal(open_tokens(out).tokens, subwords().encode(text.read_text()))


def test_a_model_whose_tokenizer_is_missing_prepares_nothing(tmp_path: Path, capsys):
    golden("llama-plain").write(tmp_path / "m")
    out = tmp_path / "x.tokens"
    command = [str(text_at(tmp_path)), "--out", str(out), "--tokenizer"]
    assert prepare.main([*command, str(tmp_path / "m")]) == 1
    check_names(capsys.readouterr().err, tmp_path / "m", "--tokenizer")
    assert prepare.main([*command, str(tmp_path)]) == 1
    check_names(capsys.readouterr().err, tmp_path)


def test_a_benchmark_takes_any_model_s_config(tmp_path: Path):
    folder = foreign(tmp_path / "small", "gemma2-plain")
    own = tmp_path / "config.json"
    own.write_text(CLASSIC.to_json())
    renamed = tmp_path / "other.json"
    renamed.write_text((folder / "config.json").read_text())
    model = tmp_path / "run" / "model"
    save(model, init(SEED, jax.random.key(0)), SEED, None)
    expected = {
        str(folder): ("small", load_config(folder)),
        str(folder / "config.json"): ("small", load_config(folder)),
        str(renamed): ("other", load_config(folder)),
        str(quantised(tmp_path / "tiny.gguf")): ("tiny", load_config(tmp_path / "tiny.gguf")),
        str(own): (tmp_path.name, CLASSIC),
        str(model): ("run", SEED),
        str(model / "model.json"): ("run", SEED),
    }
    for path, (name, config) in expected.items():
        (case,) = cases((), config=path, seq=(8,))
        assert (case.name, case.config) == (name, config)


def test_the_name_of_a_model_is_the_last_part_of_its_path():
    assert name_of("org/name-1.5b") == "name-1.5b"
    assert name_of("gpt2") == "gpt2"
    assert name_of("m/model.safetensors.Q4_1.gguf") == "model.safetensors.Q4_1"


BAD = {
    "no JSON": ("x" * 10, ()),
    "another's": ('{"n_layers": 3, "depth": 1}', ("'depth'", "model_type")),
    "a list": ("[1]", ("list",)),
    "unknown": ('{"model_type": "mamba"}', ("mamba",)),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_config_file_is_refused(bench, tmp_path: Path, what: str):
    text, named = BAD[what]
    path = tmp_path / "bad.json"
    path.write_text(text)
    _, out = bench("forward", "--config", str(path), "--peers", "none", status=1)
    check_names(out, path, *named)
    assert out.count("error: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["forward", "train-step", "decode"])
def test_peers_that_cannot_build_a_foreign_model_say_so(bench, tmp_path: Path, workload: str):
    folder = foreign(tmp_path / "small-gemma", "gemma2-plain")
    rows, out = bench(
        workload, "--config", str(folder), "--seq", "6", "--batch", "2", "--repeats", "3", "--new", "3",
        "--peers", "flax-nnx", "torch",
    )  # fmt: skip
    assert [row["implementation"] for row in rows] == ["jaxformer"]
    assert {row["size"] for row in rows} == {"small-gemma"}
    for peer in ("flax-nnx", "torch"):
        assert f"{peer} skipped" in out
