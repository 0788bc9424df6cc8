"""A checkpoint of a model: one folder that holds parameters, Config and tokenizer.

`model.json` holds the Config and the tokenizer, and the name and SHA-256 of the safetensors file with the parameters.
The parameters are written first, under a name that no older model uses. Then the new `model.json` is renamed over the
old one, and only this step replaces the model. A crash at any other moment leaves at most a stray file, which the next
`save` deletes.
"""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import Config
from jaxformer.model.checks import check_params
from jaxformer.model.params import Params, abstract
from jaxformer.model.spec import path_name
from jaxformer.pretrained.atomic import replace_file
from jaxformer.pretrained.json_io import explained, read_object
from jaxformer.text.subwords import Subwords
from jaxformer.text.tokenizer import Tokenizer, from_json

FORMAT = "jaxformer-1"
OWN_FILES = re.compile(
    r"params-[0-9a-f]{16}\.safetensors|\.(params-[0-9a-f]{16}\.safetensors|model\.json)\.\d+\.partial"
)
"""Names that only `save` uses: parameter files and unfinished files."""


class Model(NamedTuple):
    """What `load` returns: the parameters, the Config, and the tokenizer, or None if there is none."""

    params: Params
    config: Config
    tokenizer: Tokenizer | None


def save(
    folder: str | os.PathLike[str],
    params: Params,
    config: Config,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model into a folder; an older model in it is replaced.

    Raises:
        ValueError: parameters or a tokenizer that do not fit the Config; an older model is kept.
        OSError: the folder cannot be created or written; an older model is kept.
    """
    from safetensors.numpy import save as to_safetensors

    check_params(params, config)
    _check_tokenizer(tokenizer, config)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        path_name(path): np.ascontiguousarray(np.asarray(array))
        for path, array in jax.tree_util.tree_leaves_with_path(params)
    }
    data = to_safetensors(arrays)
    digest = hashlib.sha256(data).hexdigest()
    file = f"params-{digest[:16]}.safetensors"
    model = {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "tokenizer": None if tokenizer is None else json.loads(tokenizer.to_json()),
        "parameters": {"file": file, "sha256": digest},
    }
    replace_file(folder / file, data)
    replace_file(folder / "model.json", json.dumps(model, indent=2).encode())
    for old in folder.iterdir():
        if OWN_FILES.fullmatch(old.name) and old.name not in (file, "model.json"):
            old.unlink(missing_ok=True)


def load(folder: str | os.PathLike[str]) -> Model:
    """Return the model in a folder that `save` wrote.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: a file that `save` did not write, or that was truncated or changed since.
    """
    saved = Saved(folder)
    return Model(saved.params(), saved.config, saved.tokenizer())


class Saved:
    """A model that `save` wrote; its tokenizer and parameters are read when they are needed.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: a file that `save` did not write, or that was truncated or changed since.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder, self.path = Path(folder), Path(folder) / "model.json"
        self.model = _read_model(self.path)
        self.config = explained(
            self.path, lambda: Config.from_json(json.dumps(self.model["config"]))
        )

    def tokenizer(self) -> Tokenizer | None:
        """Read the tokenizer; None: the model has none."""
        if self.model["tokenizer"] is None:
            return None
        text = json.dumps(self.model["tokenizer"])
        tokenizer = explained(self.path, lambda: from_json(text))
        explained(self.path, lambda: _check_tokenizer(tokenizer, self.config))
        return tokenizer

    def params(self) -> Params:
        """Read the parameters and check them against the Config."""
        return _read_params(self.folder, self.model["parameters"], self.config)


def _check_tokenizer(tokenizer: Tokenizer | None, config: Config) -> None:
    """Refuse a tokenizer with more entries than embeddings, except Subwords: published models may have those."""
    if tokenizer is None or isinstance(tokenizer, Subwords):
        return
    if tokenizer.n_vocab > config.n_vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.n_vocab} entries, but the Config has n_vocab={config.n_vocab}; "
            "choose n_vocab at least as large"
        )


def _read_model(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no model: it has no {path.name}")
    model = read_object(path)
    if model.get("format") != FORMAT:
        raise ValueError(f'{path} was not written by jaxformer: it lacks "format": "{FORMAT}"')
    if missing := {"config", "tokenizer", "parameters"} - model.keys():
        raise ValueError(f"{path} lacks {min(missing)!r}; it was changed after it was saved")
    return model


def _read_params(folder: Path, entry: Any, config: Config) -> Params:
    from safetensors import SafetensorError, safe_open

    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
        raise ValueError(f"{folder / 'model.json'} does not name its parameter file")
    path = folder / Path(entry["file"]).name
    if not path.is_file():
        raise ValueError(f"{path} is missing; model.json names it as the parameter file")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.get("sha256"):
        raise ValueError(
            f"{path} is damaged: its SHA-256 differs from the one in model.json; save the model again"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    return _to_params(arrays, config, path)


def _to_params(arrays: dict[str, Any], config: Config, path: Path) -> Params:
    """Return the arrays as Params; refuse missing or extra ones, and wrong shapes."""
    names = jax.tree_util.tree_map_with_path(lambda place, _: path_name(place), abstract(config))
    if different := {*jax.tree.leaves(names)} ^ arrays.keys():
        name = min(different)
        raise ValueError(
            f"{path} holds {name}, which its Config does not have"
            if name in arrays
            else f"{path} lacks {name}, which its Config has"
        )
    wide = [name for name, array in arrays.items() if array.dtype == np.float64]
    if wide and jnp.result_type(float) != np.float64:
        raise ValueError(
            f'{path} holds {wide[0]} as float64; call jax.config.update("jax_enable_x64", True) first'
        )
    params = jax.tree.map(lambda name: jnp.asarray(arrays.pop(name)), names)
    explained(path, lambda: check_params(params, config))
    return params
