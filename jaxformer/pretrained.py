"""Models that people have: folders and files of ours, of Hugging Face and of llama.cpp, by one function."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from jaxformer import checkpoint
from jaxformer.config import Config
from jaxformer.families import find_family
from jaxformer.families.family import Family
from jaxformer.families.fields import Fields
from jaxformer.families.fill import read_params
from jaxformer.families.gguf import read_config
from jaxformer.formats import Source, open_folder, open_gguf
from jaxformer.params import Params, partition
from jaxformer.spec import path_name
from jaxformer.tokenizer import Tokenizer
from jaxformer.vocabularies import from_folder, from_gguf

DTYPES = ("float16", "bfloat16", "float32", "float64")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PATTERNS = ["*.json", "*.safetensors", "merges.txt", "tokenizer.model"]
"""What to fetch of a model in the hub."""


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: Mapping[str, str | None] | None = None,
) -> tuple[Config, Params, Tokenizer | None]:
    """A model: its Config, its parameters and its tokenizer, if it has one.

    Every tensor's name and shape is checked before the first is read; then one is read at a time.

    Args:
        path: a folder of ours or of Hugging Face, a GGUF file, or, where nothing of this name is here, an id in
            Hugging Face's hub, as "gpt2".
        dtype: of the parameters, as "bfloat16"; None: the file's own, and float32 for quantised numbers.
        mesh: the devices to lay the parameters on.
        rules: for a mesh, the mesh axis for an axis letter, as `partition` takes them; None: all of it everywhere.

    Raises:
        FileNotFoundError: there is nothing to read.
        ValueError: a file that is damaged, a model that jaxformer cannot compute, a dtype that is none.

    >>> import tempfile, jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> folder = tempfile.mkdtemp()
    >>> jaxformer.save(folder, config, jaxformer.init(config, jax.random.key(0)))
    >>> load(folder, dtype="bfloat16")[1].W_E.dtype
    dtype(bfloat16)
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(map(repr, DTYPES))}")
    if rules is not None and mesh is None:
        raise ValueError("rules say where on a mesh parameters go; give the mesh too")
    place = _model_in(_found(path))
    if place.name == "model.json":
        config, params, tokenizer = checkpoint.load(place.parent)
        if dtype is not None or mesh is not None:
            put = _putter(config, dtype or str(params.W_E.dtype), mesh, rules)
            params = jax.tree_util.tree_map_with_path(
                lambda path, array: put(path_name(path), np.asarray(array, dtype)), params
            )
        return config, params, tokenizer
    if place.name == "config.json":
        return _load_folder(place.parent, dtype, mesh, rules)
    return _load_gguf(place, dtype, mesh, rules)


def load_config(path: str | os.PathLike[str]) -> Config:
    """A model's Config alone: no parameter is read. `abstract` of it tells their shapes.

    Args:
        path: as `load` takes it.

    Raises:
        FileNotFoundError: there is nothing to read.
        ValueError: a file that is damaged, a model that jaxformer cannot compute.
    """
    place = _model_in(_found(path))
    if place.name == "model.json":
        return checkpoint.load_config(place.parent)
    if place.name == "config.json":
        return read_foreign(place)[1]
    with open_gguf(place) as source:
        return _explained(place, lambda: read_config(source, source.fields))[1]


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer | None:
    """A model's tokenizer alone, if it has one: no parameter is read.

    Args:
        path: as `load` takes it.

    Raises:
        FileNotFoundError: there is nothing to read.
        ValueError: a file that is damaged.
    """
    place = _model_in(_found(path))
    if place.name == "model.json":
        return checkpoint.load_tokenizer(place.parent)
    if place.name == "config.json":
        return from_folder(place.parent)
    with open_gguf(place) as source:
        return from_gguf(source.fields, place)


def _model_in(place: Path) -> Path:
    """The file that says what model a folder holds; a file says so itself.

    Raises:
        FileNotFoundError: the folder holds none, or several.
    """
    if place.is_file():
        return place
    for name in ("model.json", "config.json"):
        if (place / name).is_file():
            return place / name
    files = sorted(place.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    raise FileNotFoundError(
        f"{place} holds no model: there is no model.json of ours, no config.json of Hugging Face's"
        + (f"; name one of its {len(files)} GGUF files" if files else " and no GGUF file in it")
    )


def _load_folder(
    folder: Path, dtype: str | None, mesh: Mesh | None, rules: Mapping[str, str | None] | None
) -> tuple[Config, Params, Tokenizer | None]:
    path = folder / "config.json"
    family, config = read_foreign(path)
    with open_folder(folder) as source:
        params = _read(source, family, config, dtype, mesh, rules)
    return config, params, _fitting(from_folder(folder), config, folder)


def _load_gguf(
    path: Path, dtype: str | None, mesh: Mesh | None, rules: Mapping[str, str | None] | None
) -> tuple[Config, Params, Tokenizer | None]:
    with open_gguf(path) as source:
        family, config = _explained(path, lambda: read_config(source, source.fields))
        tokenizer = _fitting(from_gguf(source.fields, path), config, path)
        params = _read(source, family, config, dtype, mesh, rules)
    return config, params, tokenizer


def read_foreign(path: Path) -> tuple[Family, Config]:
    """The family and our Config of a config.json.

    Raises:
        ValueError: a file that is no JSON object, an unknown family, a field that jaxformer cannot compute with.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is cut short or is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a JSON object, not {type(values).__name__}")
    family = find_family(values.get("model_type"), str(path))
    fields = Fields(values, str(path))

    def read() -> Config:
        config = family.read(fields)
        fields.finish()
        return config

    return family, _explained(path, read)


def _read(
    source: Source,
    family: Family,
    config: Config,
    dtype: str | None,
    mesh: Mesh | None,
    rules: Mapping[str, str | None] | None,
) -> Params:
    dtype = dtype or _own_dtype(source)
    put = _putter(config, dtype, mesh, rules)
    return read_params(source, family, config, jnp.dtype(dtype), put)


def _putter(
    config: Config, dtype: str, mesh: Mesh | None, rules: Mapping[str, str | None] | None
) -> Callable[[str, np.ndarray], Array]:
    """Where each array goes.

    Raises:
        ValueError: float64 where JAX has it switched off; a rule for an axis that does not exist.
    """
    if dtype == "float64" and jnp.result_type(float) != np.float64:
        raise ValueError(
            'float64 parameters need 64-bit JAX; call jax.config.update("jax_enable_x64", True) first, '
            'or give dtype="float32"'
        )
    if mesh is None:
        return lambda name, array: jax.device_put(array)
    layout = {
        path_name(path): NamedSharding(mesh, spec)
        for path, spec in jax.tree_util.tree_leaves_with_path(partition(config, rules or {}))
    }
    return lambda name, array: jax.device_put(array, layout[name])


def _own_dtype(source: Source) -> str:
    """The widest of a file's floats: float32 if two 16-bit kinds are mixed."""
    found = {str(tensor.dtype) for tensor in source.tensors.values()} & set(DTYPES)
    if len(found) == 2 and found == {"float16", "bfloat16"}:
        return "float32"
    return max(found, key=DTYPES.index, default="float32")


def _fitting(tokenizer: Tokenizer | None, config: Config, path: Path) -> Tokenizer | None:
    if tokenizer is not None and tokenizer.n_vocab > config.n_vocab:
        raise ValueError(
            f"{path} has a tokenizer of {tokenizer.n_vocab} entries, and embeddings for {config.n_vocab}"
        )
    return tokenizer


def _explained(path: Path, read: Callable[[], Any]) -> Any:
    """What was read; errors that do not name the file get its name."""
    try:
        return read()
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _found(path: str | os.PathLike[str]) -> Path:
    """The folder or file, here or fetched.

    Raises:
        FileNotFoundError: neither.
    """
    place = Path(path)
    if place.exists():
        return place
    if not HUB_ID.fullmatch(str(path)) or place.suffix == ".gguf":
        raise FileNotFoundError(f"{path} is not here; give a model's folder or a GGUF file")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{path} is not here; to look for it in Hugging Face's hub: pip install 'jaxformer[hf]'"
        ) from error
    try:
        return Path(snapshot_download(str(path), allow_patterns=PATTERNS))
    except Exception as error:
        raise FileNotFoundError(
            f"{path} is not here, and Hugging Face's hub did not give it: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
