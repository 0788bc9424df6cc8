"""Loading reads slab by slab, needs little more memory than the parameters, and finds a model's dtype."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxformer import Config, Rotary, abstract, export, load
from jaxformer.pretrained.families import reader
from tests.helpers import ggufs
from tests.helpers.errors import raises
from tests.helpers.families import ONE_EACH, golden
from tests.helpers.models import same

MODELS = {
    "llama": Config(
        n_layers=8, d_model=512, n_heads=8, d_head=64, d_mlp=1536, n_vocab=8000, position="rotary",
        norm="rms", activation="silu", gated=True,
    ),
    "gpt_neox": Config(
        n_layers=6, d_model=512, n_heads=8, d_head=64, d_mlp=2048, n_vocab=50304, position="rotary",
        rotary=Rotary(fraction=0.25), norm="layer", activation="gelu", bias="all", parallel=True,
    ),
    "gpt_neo": Config(
        n_layers=8, d_model=256, n_heads=16, d_head=16, d_mlp=1024, n_vocab=50257, position="learned",
        n_context=2048, norm="layer", activation="gelu_tanh", bias="all_but_qkv", tied=True,
        attention_scale=1.0, window=256, window_pattern="GL",
    ),
}  # fmt: skip


EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"


def anonymous() -> int:
    """Bytes of this process's memory that do not map a file."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def peak(run: Callable[[], Any]) -> tuple[Any, int]:
    """The result of a call, and the peak memory that it added."""
    start, most, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = jax.block_until_ready(run())
    finally:
        done.set()
        watcher.join()
    return result, most[0] - start


@pytest.mark.slow(unless=("gpt_neo-float32",))
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", MODELS)
def test_loading_holds_little_more_than_the_parameters(family: str, dtype: str, tmp_path: Path):
    config, path = MODELS[family], tmp_path / "model.safetensors"
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), abstract(config))
    export(tmp_path, params, config, None, family)
    del params
    if config.tied:  # store the unembedding too, as some published files do
        tensors = load_file(path)
        save_file(tensors | {HEAD: tensors[EMBEDDING].copy()}, path)
        del tensors
    loaded, added = peak(lambda: load(tmp_path, dtype=dtype).params)
    assert added < 1.3 * sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    assert all((np.asarray(leaf) == 0.5).all() for leaf in jax.tree.leaves(loaded))


@pytest.mark.parametrize("case", ONE_EACH)
def test_reading_in_slabs_gives_the_same_parameters(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = golden(case)
    record.write(tmp_path)
    whole = load(tmp_path).params
    for slab in (1, 200):  # one row at a time; several rows, with fewer in the last slab
        monkeypatch.setattr(reader, "SLAB", slab)
        same(load(tmp_path).params, whole)


def test_every_row_of_a_tied_head_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "SLAB", 200)
    record = golden("gpt2-plain")
    embedding = record.tensors[EMBEDDING].copy()
    embedding[3, 2] = np.nan
    both = record.tensors | {EMBEDDING: embedding, HEAD: embedding.copy()}
    record._replace(tensors=both).write(tmp_path)
    assert np.isnan(load(tmp_path).params.W_E[3, 2])
    both[HEAD][-1, -1] += 1
    record._replace(tensors=both).write(tmp_path)
    with raises(ValueError, tmp_path, HEAD, EMBEDDING):
        load(tmp_path)


def test_a_tied_model_may_store_only_its_unembedding(tmp_path: Path):
    record = golden("gpt2-plain")
    record.write(tmp_path / "plain")
    tensors = dict(record.tensors)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    record._replace(tensors=tensors).write(tmp_path / "head")
    same(load(tmp_path / "head").params, load(tmp_path / "plain").params)
    del tensors[HEAD]
    record._replace(tensors=tensors).write(tmp_path / "none")
    with raises(ValueError, tmp_path / "none", EMBEDDING, (24, 16)):
        load(tmp_path / "none")


F16, BF16, F32 = np.float16, ml_dtypes.bfloat16, np.float32


@pytest.mark.parametrize(
    ("matrices", "odd", "vectors", "expected"),
    [
        (F16, F16, F16, "float16"),
        (BF16, BF16, F32, "bfloat16"),
        (F16, BF16, F16, "float32"),
        (BF16, F32, BF16, "float32"),
        (F32, F32, F16, "float32"),
    ],
)
def test_the_dtype_of_a_file_is_that_of_its_matrices(
    matrices: Any, odd: Any, vectors: Any, expected: str, tmp_path: Path
):
    record = golden("llama-plain")
    tensors = {
        name: tensor.astype(vectors if tensor.ndim == 1 else matrices)
        for name, tensor in record.tensors.items()
    }
    tensors[HEAD] = tensors[HEAD].astype(odd)
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones((2, 1), F32)}
    record._replace(tensors=tensors | frequencies).write(tmp_path)
    for leaf in jax.tree.leaves(load(tmp_path).params):
        assert leaf.dtype == jnp.dtype(expected)


def test_float32_norms_in_a_gguf_file_do_not_change_the_model_s_dtype(tmp_path: Path):
    record = golden("llama-plain")
    tensors = {n: t.astype(F16) if t.ndim > 1 else t for n, t in record.tensors.items()}
    ggufs.write(tmp_path / "m.gguf", record._replace(tensors=tensors))
    for leaf in jax.tree.leaves(load(tmp_path / "m.gguf").params):
        assert leaf.dtype == jnp.float16
