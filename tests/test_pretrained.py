"""`load` finds what a path holds, reads nothing before all of it fits, and puts it where it is asked to."""

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import TypeCheckError

from jaxformer import Characters, Config, abstract, export, load, load_config, save
from jaxformer.families import FAMILIES
from jaxformer.families.fill import read_params, wanted
from jaxformer.formats import Tensor
from tests import ggufs
from tests.families import golden
from tests.models import MODERN, NAMED, SEED, random_params
from tests.test_families import ONE_EACH, same


def test_a_folder_of_ours_is_what_was_saved(tmp_path: Path):
    params = random_params(SEED)
    save(tmp_path, SEED, params, Characters.of("abc"))
    config, loaded, tokenizer = load(tmp_path)
    assert config == SEED == load_config(tmp_path)
    assert isinstance(tokenizer, Characters)
    same(loaded, params)


@pytest.mark.parametrize("name", ["gemma", "olmo"])
def test_every_choice_is_kept_in_a_folder_of_ours(name: str, tmp_path: Path):
    params = random_params(NAMED[name])
    save(tmp_path, NAMED[name], params)
    assert load(tmp_path)[0] == NAMED[name]
    same(load(tmp_path)[1], params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_folder_of_ours_in_another_dtype(dtype: str, tmp_path: Path):
    params = random_params(MODERN)
    save(tmp_path, MODERN, params)
    with jax.enable_x64(dtype == "float64"):
        loaded = load(tmp_path, dtype=dtype)[1]
        same(loaded, jax.tree.map(lambda array: jnp.asarray(array).astype(dtype), params))


def test_a_config_is_read_without_its_weights(tmp_path: Path):
    for case in ONE_EACH:
        golden(case).write(tmp_path / case)
        config = load(tmp_path / case)[0]
        (tmp_path / case / "model.safetensors").unlink()
        assert (
            load_config(tmp_path / case) == config == load_config(tmp_path / case / "config.json")
        )
    save(tmp_path, SEED, random_params(SEED))
    assert load_config(tmp_path) == SEED
    ggufs.write(tmp_path / "a.gguf", golden("llama-plain"))
    assert load_config(tmp_path / "a.gguf") == load_config(tmp_path / "llama-plain")


class Watched:
    """A Source that says what is read of it."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.path, self.held, self.asked = Path("watched"), tensors, []
        self.tensors: Mapping[str, Tensor] = {
            name: Tensor(t.shape, t.dtype, self.path) for name, t in tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        self.asked.append(name)
        return self.held[name]

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("case", ONE_EACH)
def test_each_tensor_is_read_once_and_none_before_all_of_them_fit(case: str, tmp_path: Path):
    record = golden(case)
    record.write(tmp_path)
    config, family = load_config(tmp_path), FAMILIES[record.config["model_type"]]

    def put(name: str, array: np.ndarray) -> jax.Array:
        return jnp.asarray(array)

    good = Watched(record.tensors)
    params = read_params(good, family, config, jnp.dtype("float32"), put)
    assert sorted(good.asked) == sorted(record.tensors)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, abstract(config))
    last = wanted(family, config)[-1].tensors[-1]
    bad = Watched(record.tensors | {last: record.tensors[last][..., :-1]})
    with pytest.raises(ValueError, match="its config asks for"):
        read_params(bad, family, config, jnp.dtype("float32"), put)
    assert bad.asked == []


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_little_more_than_the_parameters(dtype: str, tmp_path: Path):
    config = Config(
        n_layers=8, d_model=512, n_heads=8, d_head=64, d_mlp=1536, n_vocab=8000, position="rotary",
        norm="rms", activation="silu", gated=True,
    )  # fmt: skip
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), abstract(config))
    export(tmp_path, config, params, None, "llama")
    del params
    start, most, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    loaded = jax.block_until_ready(load(tmp_path, dtype=dtype)[1])
    done.set()
    watcher.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    assert most[0] - start < 1.3 * size


def test_parameters_land_on_the_mesh_that_is_given(tmp_path: Path):
    golden("llama-plain").write(tmp_path)
    mesh = Mesh(np.array(jax.devices()[:1]), ("tensor",))
    config, params, _ = load(tmp_path, mesh=mesh, rules={"n": "tensor", "f": "tensor"})
    assert params.blocks.attn.W_Q.sharding == NamedSharding(mesh, P(None, None, "tensor", None))
    assert params.blocks.mlp is not None
    assert params.blocks.mlp.W_out.sharding == NamedSharding(mesh, P(None, "tensor", None))
    same(params, load(tmp_path)[1])
    save(tmp_path / "ours", config, params)
    again = load(tmp_path / "ours", mesh=mesh, rules={"n": "tensor"})[1]
    assert again.blocks.attn.W_Q.sharding == NamedSharding(mesh, P(None, None, "tensor", None))
    with pytest.raises(ValueError, match="no axis 'heads'"):
        load(tmp_path, mesh=mesh, rules={"heads": "tensor"})
    with pytest.raises(ValueError, match="give the mesh too"):
        load(tmp_path, rules={"n": "tensor"})


def test_a_dtype_that_is_none(tmp_path: Path):
    golden("llama-plain").write(tmp_path)
    for dtype in ("int8", "float", "bf16"):
        with pytest.raises(ValueError, match=f"dtype='{dtype}' must be one of 'float16'"):
            load(tmp_path, dtype=dtype)
    with pytest.raises(ValueError, match="need 64-bit JAX"):
        load(tmp_path, dtype="float64")


def test_a_path_that_is_not_here_is_looked_for_in_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    fetched = tmp_path / "cache"
    golden("gpt2-plain").write(fetched)
    asked: list[tuple[str, Any]] = []

    class Hub:
        @staticmethod
        def snapshot_download(name: str, allow_patterns: list[str]) -> str:
            asked.append((name, allow_patterns))
            return str(fetched)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    for name in ("gpt2", "openai-community/gpt2"):
        assert load(name)[0] == load(fetched)[0] == load_config(name)
    assert [name for name, _ in asked] == [
        "gpt2",
        "gpt2",
        "openai-community/gpt2",
        "openai-community/gpt2",
    ]


def test_a_hub_that_does_not_answer_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)

    class Hub:
        @staticmethod
        def snapshot_download(name: str, allow_patterns: list[str]) -> str:
            raise ConnectionError("no network\nand much more")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    with pytest.raises(
        FileNotFoundError,
        match="gpt2 is not here, and .* hub did not give it: ConnectionError: no network$",
    ):
        load("gpt2")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        FileNotFoundError, match=r"gpt2 is not here; .* pip install 'jaxformer\[hf\]'"
    ):
        load("gpt2")
    for path in ("no/such/folder", "/no/such", "lost.gguf", "../gpt2 ", ""):
        with pytest.raises(FileNotFoundError):
            load(path)


def test_a_folder_with_a_config_and_no_weights(tmp_path: Path):
    golden("llama-plain").write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights: expected model.safetensors"):
        load(tmp_path)


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path):
    pytest.importorskip("tokenizers")
    golden("gpt2-plain").write(tmp_path)
    vocab = {character: i for i, character in enumerate("abcdefghijklmnopqrstuvwxyzABCDEF")}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="a tokenizer of 3[23] entries, and embeddings for 24"):
        load(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    golden("qwen3-plain").write(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(data=st.data())
@settings(max_examples=100)
def test_a_damaged_folder_is_a_clear_error_or_a_model_of_its_config(whole, tmp_path: Path, data):
    name = data.draw(st.sampled_from(sorted(whole)))
    content = whole[name]
    place = data.draw(st.integers(0, min(len(content), 4000) - 1))
    cut = data.draw(st.booleans())
    flipped = bytes([content[place] ^ (1 << data.draw(st.integers(0, 7)))])
    damaged = content[:place] if cut else content[:place] + flipped + content[place + 1 :]
    for file, original in whole.items():
        (tmp_path / file).write_bytes(damaged if file == name else original)
    try:
        config, params, _ = load(tmp_path)
    except TypeCheckError:  # the tests' own type checks spoke before Config's: refused as well
        assert name == "config.json"
    except (ValueError, FileNotFoundError) as error:
        assert str(tmp_path) in str(error)
    else:
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, abstract(config))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text(max_size=4),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@given(data=st.data())
@settings(max_examples=200)
def test_any_value_of_any_field_is_a_config_or_a_clear_error(tmp_path: Path, data):
    case = data.draw(st.sampled_from(ONE_EACH))
    fields = dict(golden(case).config)
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3)):
        fields[name] = data.draw(VALUES)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    try:
        load_config(tmp_path)
    except TypeCheckError:
        pass
    except ValueError as error:
        assert str(path) in str(error)
