"""`load` finds the model at a path, and checks all tensors before it reads one."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jaxformer import Characters, abstract, load, load_config, save
from jaxformer.pretrained.families import FAMILIES
from jaxformer.pretrained.families.reader import read_params
from jaxformer.pretrained.families.tensor_map import plan, wanted
from jaxformer.pretrained.formats import Tensor
from jaxformer.pretrained.loading import load_tokenizer
from tests.helpers import ggufs
from tests.helpers.damage import damaged, write
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.families import ONE_EACH, golden
from tests.helpers.models import MODERN, SEED, random_params, same


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_checkpoint_is_loaded_in_another_dtype(dtype: str, tmp_path: Path):
    params = random_params(MODERN)
    save(tmp_path, params, MODERN)
    with jax.enable_x64(dtype == "float64"):
        loaded = load(tmp_path, dtype=dtype).params
        same(loaded, jax.tree.map(lambda array: jnp.asarray(array).astype(dtype), params))


def test_a_config_is_read_without_its_weights(tmp_path: Path):
    for case in ONE_EACH:
        folder = tmp_path / case
        golden(case).write(folder)
        config = load(folder).config
        (folder / "model.safetensors").unlink()
        assert load_config(folder) == config == load_config(folder / "config.json")
        with raises(FileNotFoundError, folder, "model.safetensors"):
            load(folder)
    save(tmp_path, random_params(SEED), SEED)
    assert load_config(tmp_path) == SEED
    ggufs.write(tmp_path / "a.gguf", golden("llama-plain"))
    assert load_config(tmp_path / "a.gguf") == load_config(tmp_path / "llama-plain")


class Recorder:
    """A Source that records which tensors are read."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.path, self.held, self.reads = Path("recorder"), tensors, []
        self.tensors: Mapping[str, Tensor] = {
            name: Tensor(t.shape, t.dtype, self.path) for name, t in tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        self.reads.append(name)
        return self.held[name]

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.read(name)[start:stop]

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("case", ONE_EACH)
def test_each_tensor_is_read_once_and_none_before_all_of_them_fit(case: str, tmp_path: Path):
    record = golden(case)
    record.write(tmp_path)
    config, family = load_config(tmp_path), FAMILIES[record.config["model_type"]]

    def put(name: str, array: np.ndarray) -> jax.Array:
        return jnp.asarray(array)

    good = Recorder(record.tensors)
    params = read_params(plan(good, family, config), jnp.dtype("float32"), put)
    assert sorted(good.reads) == sorted(record.tensors)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, abstract(config))
    last = wanted(family, config)[-1].tensors[-1]
    bad = Recorder(record.tensors | {last: record.tensors[last][..., :-1]})
    with raises(ValueError, last, record.tensors[last].shape, bad.tensors[last].shape):
        read_params(plan(bad, family, config), jnp.dtype("float32"), put)
    assert bad.reads == []


def test_an_unknown_or_disabled_dtype_is_refused(tmp_path: Path):
    golden("llama-plain").write(tmp_path)
    for dtype in ("int8", "float", "bf16"):
        with raises(ValueError, f"dtype='{dtype}'", "'float16'"):
            load(tmp_path, dtype=dtype)
    with raises(ValueError, "float64", "jax_enable_x64"):
        load(tmp_path, dtype="float64")


def test_a_model_with_a_damaged_tokenizer_can_be_loaded_without_it(tmp_path: Path):
    golden("gpt2-plain").write(tmp_path / "hugging_face")
    weights = load(tmp_path / "hugging_face").params
    (tmp_path / "hugging_face" / "tokenizer.json").write_text("{}")
    save(tmp_path / "saved", random_params(SEED), SEED, Characters.of("abc"))
    assert load(tmp_path / "saved", tokenizer=False).tokenizer is None
    path = tmp_path / "saved" / "model.json"
    path.write_text(path.read_text().replace('"characters"', '"runes"'))
    for folder, expected in (
        (tmp_path / "hugging_face", weights),
        (tmp_path / "saved", random_params(SEED)),
    ):
        params, config, tokenizer = load(folder, tokenizer=False)
        assert (config, tokenizer) == (load_config(folder), None)
        same(params, expected)
        for file in folder.glob("*.safetensors"):  # the tokenizer is read before the weights
            file.unlink()
        with raises(ValueError, folder, "tokenizer=False"):
            load(folder)
    path = tmp_path / "a.gguf"
    ggufs.write(path, golden("llama-plain"), lambda w: w.add_tokenizer_model("runes"))
    assert load(path, tokenizer=False).tokenizer is None
    with raises(ValueError, path, "'runes'", "tokenizer=False"):
        load(path)


def test_loading_a_checkpoint_refuses_overflow(tmp_path: Path):
    params = random_params(SEED)
    large = params._replace(W_E=params.W_E.at[0, 0].set(1e5))
    save(tmp_path, large, SEED)
    with raises(ValueError, tmp_path, "W_E", "float16"):
        load(tmp_path, dtype="float16")
    assert load(tmp_path, dtype="bfloat16").params.W_E[0, 0] == jnp.bfloat16(1e5)
    save(tmp_path, params._replace(W_E=params.W_E.at[0, 0].set(jnp.inf)), SEED)
    assert load(tmp_path, dtype="float16").params.W_E[0, 0] == jnp.inf  # as it was saved


def test_the_path_of_a_config_file_loads_its_folder(tmp_path: Path):
    golden("llama-plain").write(tmp_path)
    same(load(tmp_path / "config.json").params, load(tmp_path).params)
    (tmp_path / "notes.txt").write_text("")
    for name in ("model.safetensors", "notes.txt"):
        for read in (load, load_config, load_tokenizer):
            with raises(ValueError, tmp_path / name, "GGUF"):
                read(tmp_path / name)
    (tmp_path / "cut.gguf").write_bytes(b"GG")
    with raises(ValueError, tmp_path / "cut.gguf", "GGUF"):
        load(tmp_path / "cut.gguf")
    ggufs.write(tmp_path / "a.gguf", golden("llama-plain"))
    (tmp_path / "a.gguf").rename(tmp_path / "weights")
    same(load(tmp_path / "weights").params, load(tmp_path).params)
    save(tmp_path / "saved", random_params(SEED), SEED)
    assert load(tmp_path / "saved" / "model.json").config == SEED


def test_a_duplicate_field_is_refused_and_a_byte_order_mark_is_accepted(tmp_path: Path):
    golden("llama-plain").write(tmp_path)
    path, config = tmp_path / "config.json", load_config(tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8-sig")
    assert load(tmp_path).config == config
    path.write_text(text.replace("{", '{"hidden_size": 32, ', 1), encoding="utf-8")
    with raises(ValueError, path, "'hidden_size'"):
        load(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    golden("qwen3-plain").write(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(data=st.data())
@examples(50)
def test_a_damaged_folder_is_refused_or_loads_a_model_of_its_config(whole, tmp_path: Path, data):
    name = data.draw(st.sampled_from(sorted(whole)))
    write(tmp_path, whole | {name: data.draw(damaged(whole[name], within=4000))})
    try:
        params, config, _ = load(tmp_path)
    except TypeCheckError:  # the tests' type checks refuse a value before Config does
        assert name == "config.json"
    except (ValueError, FileNotFoundError) as error:
        assert str(tmp_path) in str(error)
    else:
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, abstract(config))
