"""Models that people have: folders and files of ours, of Hugging Face and of llama.cpp, by one function."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxformer.config import Config
from jaxformer.model.params import Params
from jaxformer.model.spec import path_name
from jaxformer.pretrained.checkpoint import Saved
from jaxformer.pretrained.families import find_family
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.fields import Fields
from jaxformer.pretrained.families.fill import Put, read_params
from jaxformer.pretrained.families.gguf import read_config
from jaxformer.pretrained.families.plan import own_dtype, plan
from jaxformer.pretrained.formats import Source, is_gguf, open_folder, open_gguf
from jaxformer.pretrained.formats.folder import FORMS
from jaxformer.pretrained.formats.source import copy_checked
from jaxformer.pretrained.hub import CONFIGS, Part, fetch
from jaxformer.pretrained.json_io import explained, read_object
from jaxformer.pretrained.tokenizers import from_folder, from_gguf
from jaxformer.sharding import Rules, shardings
from jaxformer.text.tokenizer import Tokenizer

DTYPES = ("float16", "bfloat16", "float32", "float64")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class _Wish(NamedTuple):
    """What `load` is asked for."""

    dtype: str | None
    mesh: Mesh | None
    rules: Rules | None
    tokenizer: bool

    def check(self) -> None:
        """Refuse what no model could be asked for, before one is looked for.

        Raises:
            ValueError: a dtype that is none; rules without a mesh.
        """
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be one of {', '.join(map(repr, DTYPES))}")
        if self.rules is not None and self.mesh is None:
            raise ValueError("rules say where on a mesh parameters go; give the mesh too")

    def words(self, read: Callable[[], Tokenizer | None]) -> Tokenizer | None:
        """The tokenizer, if it is wanted.

        Raises:
            ValueError: one that cannot be read; the model may be read without it.
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
        """Where each array goes.

        Raises:
            ValueError: float64 where JAX has it switched off; rules that do not fit the model or the mesh.
        """
        if dtype == "float64" and jnp.result_type(float) != np.float64:
            raise ValueError(
                'float64 parameters need 64-bit JAX; call jax.config.update("jax_enable_x64", True) first, '
                'or give dtype="float32"'
            )
        if self.mesh is None:
            return lambda name, array: jax.device_put(array)
        places = shardings(config, self.mesh, self.rules or {})
        layout = {
            path_name(path): place for path, place in jax.tree_util.tree_leaves_with_path(places)
        }

        def put(name: str, array: np.ndarray) -> jax.Array:
            # By its parts: of a mesh of several processes, each puts those on its own devices.
            return jax.make_array_from_callback(array.shape, layout[name], array.__getitem__)

        return put


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    tokenizer: bool = True,
) -> tuple[Config, Params, Tokenizer | None]:
    """A model: its Config, its parameters and its tokenizer, if it has one.

    Every tensor's name and shape is checked before the first is read; then one is read at a time. A tokenizer may
    have more entries than the model has embeddings; `forward` refuses the ids of those.

    Args:
        path: a folder of ours or of Hugging Face, a GGUF file, or, where nothing of this name is here, an id in
            Hugging Face's hub, as "gpt2". Of a folder that holds both kinds, ours.
        dtype: of the parameters, as "bfloat16"; None: the file's own, and float32 for quantised numbers.
        mesh: the devices to lay the parameters on.
        rules: for a mesh, the mesh axis for an axis letter, as `partition` takes them; None: all of it everywhere.
        tokenizer: False: it is not read, and None is in its place.

    Raises:
        FileNotFoundError: there is nothing to read.
        ValueError: a file that is damaged, a model that jaxformer cannot compute, a dtype that is none or has no room
            for the model's numbers.

    >>> import tempfile, jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> folder = tempfile.mkdtemp()
    >>> jaxformer.save(folder, config, jaxformer.init(config, jax.random.key(0)))
    >>> load(folder, dtype="bfloat16")[1].W_E.dtype
    dtype(bfloat16)
    """
    wish = _Wish(dtype, mesh, rules, tokenizer)
    wish.check()
    place = _model_in(_found(path, "a model"))
    if place.name == "model.json":
        return _load_ours(place.parent, wish)
    if place.name == "config.json":
        return _load_folder(place.parent, wish)
    return _load_gguf(place, wish)


def load_config(path: str | os.PathLike[str]) -> Config:
    """A model's Config alone: no parameter is read. `abstract` of it tells their shapes.

    Args:
        path: as `load` takes it; of a model in the hub, nothing else is fetched.

    Raises:
        FileNotFoundError: there is nothing to read.
        ValueError: a file that is damaged, a model that jaxformer cannot compute.
    """
    place = _model_in(_found(path, "a config"))
    if place.name == "model.json":
        return Saved(place.parent).config
    if place.name == "config.json":
        return read_foreign(place)[1]
    with open_gguf(place) as source:
        return explained(place, lambda: read_config(source, source.fields))[1]


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer | None:
    """A model's tokenizer alone, if it has one: no parameter is read.

    Args:
        path: as `load` takes it; of a model in the hub, no weights are fetched.

    Raises:
        FileNotFoundError: there is nothing to read.
        ValueError: a file that is damaged.
    """
    place = _model_in(_found(path, "a tokenizer"))
    if place.name == "model.json":
        return Saved(place.parent).tokenizer()
    if place.name == "config.json":
        return from_folder(place.parent)
    with open_gguf(place) as source:
        return from_gguf(source.fields, place)


def _model_in(place: Path) -> Path:
    """The file that says what model a folder holds; a GGUF file says so itself.

    Raises:
        FileNotFoundError: the folder holds none, or several.
        ValueError: a file that says of no model what it is.
    """
    if place.is_file():
        if place.name not in CONFIGS and place.suffix != ".gguf" and not is_gguf(place):
            raise ValueError(
                f"{place} is no GGUF file and tells no model by itself; give its folder, {place.parent}"
            )
        return place
    files = sorted(place.glob("*.gguf"))
    bare = len(files) == 1 and not any((place / name).is_file() for name in FORMS)
    for name in CONFIGS:
        if (place / name).is_file() and not (bare and name == "config.json"):
            return place / name
    if len(files) == 1:  # that may have a config.json beside it, and its weights in itself
        return files[0]
    raise FileNotFoundError(
        f"{place} holds no model: there is no model.json of ours, no config.json of Hugging Face's"
        + (f"; name one of its {len(files)} GGUF files" if files else " and no GGUF file in it")
    )


def _load_ours(folder: Path, wish: _Wish) -> tuple[Config, Params, Tokenizer | None]:
    saved = Saved(folder)
    config, tokenizer, params = saved.config, wish.words(saved.tokenizer), saved.params()
    if wish.dtype is None and wish.mesh is None:
        return config, params, tokenizer
    put = wish.putter(config, wish.dtype or str(params.W_E.dtype))
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    del params  # each leaf goes as soon as its copy is there
    moved = []
    while leaves:
        path, array = leaves.pop(0)
        given = np.asarray(array)
        into = given if wish.dtype is None else np.empty(given.shape, jnp.dtype(wish.dtype))
        if into is not given:
            copy_checked(given, into, f"{folder} holds {path_name(path)}")
        moved.append(put(path_name(path), into))
    return config, jax.tree_util.tree_unflatten(tree, moved), tokenizer


def _load_folder(folder: Path, wish: _Wish) -> tuple[Config, Params, Tokenizer | None]:
    family, config = read_foreign(folder / "config.json")
    tokenizer = wish.words(lambda: from_folder(folder))
    with open_folder(folder) as source:
        return config, _read(source, family, config, wish), tokenizer


def _load_gguf(path: Path, wish: _Wish) -> tuple[Config, Params, Tokenizer | None]:
    with open_gguf(path) as source:
        family, config = explained(path, lambda: read_config(source, source.fields))
        tokenizer = wish.words(lambda: from_gguf(source.fields, path))
        return config, _read(source, family, config, wish), tokenizer


def _read(source: Source, family: Family, config: Config, wish: _Wish) -> Params:
    found = plan(source, family, config)
    dtype = wish.dtype or own_dtype(found)
    return read_params(found, jnp.dtype(dtype), wish.putter(config, dtype))


def read_foreign(path: Path) -> tuple[Family, Config]:
    """The family and our Config of a config.json.

    Raises:
        ValueError: a file that is no JSON object, or has a field twice; an unknown family, a field that jaxformer
            cannot compute with.
    """
    values = read_object(path)
    family = find_family(values.get("model_type"), str(path))
    fields = Fields(values, str(path))

    def read() -> Config:
        config = family.read(fields)
        fields.finish()
        return config

    return family, explained(path, read)


def _found(path: str | os.PathLike[str], part: Part) -> Path:
    """The folder or file, here or fetched.

    Raises:
        FileNotFoundError: neither.
    """
    place = Path(path)
    if place.exists():
        return place
    if not HUB_ID.fullmatch(str(path)) or place.suffix == ".gguf":
        raise FileNotFoundError(f"{path} is not here; give a model's folder or a GGUF file")
    return fetch(str(path), part)
