"""Load a model saved by jaxformer, by Hugging Face's libraries or for llama.cpp, with one function."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxformer.config import Config
from jaxformer.model.params import Params
from jaxformer.model.spec import path_name
from jaxformer.pretrained.checkpoint import Model, Saved
from jaxformer.pretrained.families import find_family
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.gguf import read_config
from jaxformer.pretrained.families.hf_config import Fields
from jaxformer.pretrained.families.ignored import as_tuple, check_ignore
from jaxformer.pretrained.families.reader import Put, read_params
from jaxformer.pretrained.families.tensor_map import own_dtype, plan
from jaxformer.pretrained.formats import Source, open_folder, open_gguf
from jaxformer.pretrained.formats.source import copy_checked
from jaxformer.pretrained.json_io import explained, read_object
from jaxformer.pretrained.location import locate
from jaxformer.pretrained.tokenizers import from_folder, from_gguf
from jaxformer.sharding import Rules, shardings
from jaxformer.text.tokenizer import Tokenizer

DTYPES = ("float16", "bfloat16", "float32", "float64")


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    tokenizer: bool = True,
    ignore: Sequence[str] = (),
) -> Model:
    """Return a model: its parameters, its Config, and its tokenizer if it has one.

    All tensor names and shapes are checked before the first tensor is read; tensors are then read one at a time. A
    tokenizer may have more entries than the model has embeddings; `forward` refuses the ids of the extra ones.

    Args:
        path: a folder written by `save` or by Hugging Face's libraries, a GGUF file, or, if nothing of this name
            exists, an id in Hugging Face's hub, such as "gpt2". In a folder with both kinds, `save`'s model is read.
        dtype: of the parameters, such as "bfloat16"; None: the file's own, or float32 for quantised tensors.
        mesh: the devices to place the parameters on.
        rules: the mesh axis for each axis letter, as in `partition`; None: every device holds all parameters.
        tokenizer: False: return None instead of the tokenizer, and do not read it.
        ignore: names of fields of config.json, or of a GGUF file's metadata, that jaxformer refuses because it does not
            know them or cannot compute their values; the model is read as if the file did not have them. A field of a
            nested table is "table.field".

    Raises:
        FileNotFoundError: there is no model at this path.
        ValueError: a damaged file, a model that jaxformer cannot compute, an unknown dtype, or one too narrow for the
            model's numbers; in `ignore`, a name that the file does not have, or a field that jaxformer needs.

    >>> import tempfile, jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> folder = tempfile.mkdtemp()
    >>> jaxformer.save(folder, jaxformer.init(config, jax.random.key(0)), config)
    >>> load(folder, dtype="bfloat16").params.W_E.dtype
    dtype(bfloat16)
    """
    request = _Request(dtype, mesh, rules, tokenizer, check_ignore(ignore))
    request.check()
    place = locate(path, "a model")
    if place.name == "model.json":
        return _load_saved(place.parent, request)
    if place.name == "config.json":
        return _load_folder(place.parent, request)
    return _load_gguf(place, request)


def load_config(path: str | os.PathLike[str], *, ignore: Sequence[str] = ()) -> Config:
    """Return a model's Config without reading its parameters; `abstract(config)` has their shapes.

    Args:
        path: as in `load`; from the hub only the config is fetched.
        ignore: as in `load`.

    Raises:
        FileNotFoundError: there is no model at this path.
        ValueError: a damaged file, a model that jaxformer cannot compute, or names in `ignore` as in `load`.
    """
    ignored = check_ignore(ignore)
    place = locate(path, "a config")
    if place.name == "model.json":
        return _open_saved(place.parent, ignored).config
    if place.name == "config.json":
        return read_foreign(place, ignored)[1]
    with open_gguf(place) as source:
        return explained(place, lambda: read_config(source, source.fields, ignored))[1]


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer | None:
    """Return a model's tokenizer, if it has one, without reading its parameters.

    Args:
        path: as in `load`; from the hub no weights are fetched.

    Raises:
        FileNotFoundError: there is no model at this path.
        ValueError: a damaged file.
    """
    place = locate(path, "a tokenizer")
    if place.name == "model.json":
        return Saved(place.parent).tokenizer()
    if place.name == "config.json":
        return from_folder(place.parent)
    with open_gguf(place) as source:
        return from_gguf(source.fields, place)


def read_foreign(path: Path, ignored: frozenset[str] = frozenset()) -> tuple[Family, Config]:
    """Return the family that a Hugging Face config.json names, and the model's Config.

    Raises:
        ValueError: not a JSON object, a duplicate field, an unknown family, or a field that jaxformer cannot compute
            and that is not ignored; the name of an ignored field that the file does not have or that jaxformer needs.
    """
    values = read_object(path)
    family = find_family(values.get("model_type"), str(path))
    fields = Fields(values, str(path), None, ignored)
    fields.check_ignored()

    def read() -> Config:
        config = family.read(fields)
        fields.finish()
        return config

    return family, explained(path, read)


class _Request(NamedTuple):
    """The options of `load`."""

    dtype: str | None
    mesh: Mesh | None
    rules: Rules | None
    tokenizer: bool
    ignored: frozenset[str]

    def check(self) -> None:
        """Refuse options that no model can meet, before a model is searched for.

        Raises:
            ValueError: an unknown dtype; rules without a mesh.
        """
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be one of {', '.join(map(repr, DTYPES))}")
        if self.rules is not None and self.mesh is None:
            raise ValueError("rules place parameters on the axes of a mesh; give the mesh too")

    def read_tokenizer(self, read: Callable[[], Tokenizer | None]) -> Tokenizer | None:
        """Read the tokenizer if it was requested.

        Raises:
            ValueError: it cannot be read; the error says how to load the model without it.
        """
        if not self.tokenizer:
            return None
        try:
            return read()
        except ValueError as error:
            raise ValueError(
                f"{error}; load(..., tokenizer=False) reads the model without it"
            ) from error

    def putter(self, config: Config, dtype: str) -> Put:
        """Return the function that places each array on its devices.

        Raises:
            ValueError: float64 while JAX has it switched off; rules that do not fit the model or the mesh.
        """
        if dtype == "float64" and jnp.result_type(float) != np.float64:
            raise ValueError(
                'float64 parameters need 64-bit JAX; call jax.config.update("jax_enable_x64", True) first, '
                'or give dtype="float32"'
            )
        if self.mesh is None:
            return lambda name, array: jax.device_put(array)
        tree = shardings(config, self.mesh, self.rules or {})
        by_name = {path_name(path): s for path, s in jax.tree_util.tree_leaves_with_path(tree)}

        def put(name: str, array: np.ndarray) -> jax.Array:
            # Shard by shard: with several processes, each fills only its own devices.
            return jax.make_array_from_callback(array.shape, by_name[name], array.__getitem__)

        return put


def _open_saved(folder: Path, ignored: frozenset[str]) -> Saved:
    """Open a model that `save` wrote; none of its fields can be ignored."""
    if ignored:
        raise ValueError(
            f"ignore={as_tuple(sorted(ignored))} names fields of config.json or of a GGUF file, but `save` wrote "
            f"{folder / 'model.json'}; leave ignore out"
        )
    return Saved(folder)


def _load_saved(folder: Path, request: _Request) -> Model:
    saved = _open_saved(folder, request.ignored)
    config, tokenizer = saved.config, request.read_tokenizer(saved.tokenizer)
    params = saved.params()
    if request.dtype is None and request.mesh is None:
        return Model(params, config, tokenizer)
    put = request.putter(config, request.dtype or str(params.W_E.dtype))
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    del params  # so that each array is freed as soon as its copy exists
    moved = []
    while leaves:
        path, array = leaves.pop(0)
        given = np.asarray(array)
        into = given if request.dtype is None else np.empty(given.shape, jnp.dtype(request.dtype))
        if into is not given:
            copy_checked(given, into, f"{folder} holds {path_name(path)}")
        moved.append(put(path_name(path), into))
    return Model(jax.tree_util.tree_unflatten(tree, moved), config, tokenizer)


def _load_folder(folder: Path, request: _Request) -> Model:
    family, config = read_foreign(folder / "config.json", request.ignored)
    tokenizer = request.read_tokenizer(lambda: from_folder(folder))
    with open_folder(folder) as source:
        return Model(_read(source, family, config, request), config, tokenizer)


def _load_gguf(path: Path, request: _Request) -> Model:
    with open_gguf(path) as source:
        family, config = explained(
            path, lambda: read_config(source, source.fields, request.ignored)
        )
        tokenizer = request.read_tokenizer(lambda: from_gguf(source.fields, path))
        return Model(_read(source, family, config, request), config, tokenizer)


def _read(source: Source, family: Family, config: Config, request: _Request) -> Params:
    found = plan(source, family, config)
    dtype = request.dtype or own_dtype(found)
    return read_params(found, jnp.dtype(dtype), request.putter(config, dtype))
