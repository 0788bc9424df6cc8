"""A model of ours into files that `transformers` reads."""

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from jaxformer.config import Config
from jaxformer.model.params import Params, check_params, stacked
from jaxformer.model.spec import path_name
from jaxformer.pretrained.atomic import replace_file, replacement
from jaxformer.pretrained.families import find_family
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.fields import Fields
from jaxformer.pretrained.families.layout import foreign_shape, to_theirs
from jaxformer.pretrained.families.plan import wanted
from jaxformer.pretrained.families.windows import shortest
from jaxformer.pretrained.tokenizers import save_tokenizer
from jaxformer.pretrained.tokenizers.folder import FILES, tokenizer_files
from jaxformer.text.tokenizer import Tokenizer

CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
"""Dtypes of weights, as a safetensors header calls them."""

NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Left out, transformers would put in the family's usual ids, and `generate` would stop at one of them."""

OTHERS = re.compile(
    r"(model\.safetensors|pytorch_model\.bin)\.index\.json|pytorch_model\.bin"
    r"|(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)|generation_config\.json"
)
"""Names of files that a model which was there may have, and that would be read beside the new ones."""

UNFINISHED = re.compile(
    rf"\.(config\.json|model\.safetensors|{'|'.join(map(re.escape, FILES))})\.\d+\.partial"
)
"""Names of files that an `export` did not finish."""


def export(
    folder: str | os.PathLike[str],
    config: Config,
    params: Params,
    tokenizer: Tokenizer | None,
    family: str,
) -> None:
    """Write a model as `transformers` keeps those of a family: config.json, model.safetensors, tokenizer.json.

    The weights keep their dtype, and `jaxformer.load` of the folder gives back the very same bits. Beside the
    parameters one of their tensors at a time is in memory (parameters on an accelerator: a copy of each on the host).
    After a crash the folder holds the old model, the new one, or none.

    Args:
        folder: made if it is not there; the model of a family that it may hold is replaced, with its tokenizer.
        params: as `init` and `load` give them.
        tokenizer: one of `load`'s, or None.
        family: "gpt2", "llama", ...: a name in `jaxformer.pretrained.families.FAMILIES`.

    Raises:
        ValueError: an unknown family; a Config that its models cannot have; parameters of another Config or of
            several dtypes; a tokenizer that is no subword tokenizer; a folder with a model that `save` wrote.
        OSError: the folder cannot be made or written.
    """
    kind = find_family(family, "the family to export to")
    check_params(params, config)
    stacked(params, config)
    fields = {
        "architectures": [kind.architecture],
        "model_type": kind.name,
        "dtype": _dtype(params),
        **NO_TOKENS,
        **foreign_config(kind, config),
    }
    tokenizer_files(tokenizer)  # refuses one that has none
    folder = Path(folder)
    if (folder / "model.json").exists():
        raise ValueError(
            f"{folder} holds model.json, a model that `save` wrote; export to another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder, UNFINISHED)
    with replacement(folder / "model.safetensors") as file:
        _write_tensors(file, kind, config, params)
        file.flush()  # a full disk says so before the old model goes
        (folder / "config.json").unlink(missing_ok=True)  # no model until the new one is whole
        _clear(folder, OTHERS)
    save_tokenizer(folder, tokenizer)
    replace_file(folder / "config.json", json.dumps(fields, indent=2).encode())


def _dtype(params: Params) -> str:
    """The one dtype of all parameters."""
    first = str(params.W_E.dtype)
    if first not in CODES:
        raise ValueError(f"W_E is {first}; weights are exported as one of {', '.join(CODES)}")
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        if str(array.dtype) != first:
            raise ValueError(
                f"W_E is {first} and {path_name(path)} is {array.dtype}; convert the parameters to "
                "one dtype, which config.json will name"
            )
    return first


def _clear(folder: Path, names: re.Pattern[str]) -> None:
    for old in sorted(folder.iterdir()):
        if names.fullmatch(old.name):
            old.unlink(missing_ok=True)


def _write_tensors(file: BinaryIO, family: Family, config: Config, params: Params) -> None:
    """A safetensors file, tensor by tensor: its library's `save_file` wants all of them at once.

    Source: huggingface.co/docs/safetensors, Format.
    """
    dtype, place = np.dtype(params.W_E.dtype), 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for row in wanted(family, config):
        shape = foreign_shape(row.weight.layout, config.sizes, len(row.specs))
        size = math.prod(shape) * dtype.itemsize
        for name in row.tensors:
            header[name] = {
                "dtype": CODES[str(dtype)],
                "shape": shape,
                "data_offsets": [place, place + size],
            }
            place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in _tensors(family, config, params):
        little = tensor if sys.byteorder == "little" else tensor.byteswap()
        file.write(little.reshape(-1).view(np.uint8).data)


def foreign_config(family: Family, config: Config) -> dict[str, Any]:
    """The fields of a family's config that say what our Config says.

    Raises:
        ValueError: naming the field of ours that the family's models cannot have.
    """
    fields = json.loads(json.dumps(family.write(config)))
    again = Fields(fields, f"a {family.name} config")
    try:
        read = family.read(again)
        again.finish()
    except ValueError as error:
        raise ValueError(f"a {family.name} model cannot be of this Config: {error}") from error
    own = _usual(config)
    for field in dataclasses.fields(Config):
        ours, theirs = getattr(own, field.name), getattr(read, field.name)
        if ours != theirs:
            raise ValueError(
                f"a {family.name} model cannot have {field.name}={ours!r}; with the rest of this Config "
                f"it has {field.name}={theirs!r}"
            )
    return fields


def _usual(config: Config) -> Config:
    """The same model in the words in which `load` puts it."""
    pattern = "".join("L" if local else "G" for local in config.local_layers)
    windowed = "L" in pattern
    return dataclasses.replace(
        config,
        n_kv_heads=None if config.n_kv_heads == config.n_heads else config.n_kv_heads,
        attention_scale=None
        if config.score_scale == config.d_head**-0.5
        else config.attention_scale,
        window=config.window if windowed else None,
        window_pattern=shortest(pattern) if windowed else "L",
        local_rotary_base=config.local_rotary_base if windowed else None,
    )


def foreign_tensors(family: Family, config: Config, params: Params) -> dict[str, np.ndarray]:
    """The family's tensors, by name, of our parameters."""
    return dict(_tensors(family, config, params))


def _tensors(family: Family, config: Config, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Each of the family's tensors in turn, in the order of its table."""
    arrays = {path_name(path): array for path, array in jax.tree_util.tree_leaves_with_path(params)}
    for row in wanted(family, config):
        own = [np.asarray(arrays[place]) for place in row.weight.places]
        for layer, name in enumerate(row.tensors):
            parts = [array[layer] for array in own] if row.specs[0].axes[0] == "l" else own
            yield name, to_theirs(parts, row.weight.layout, row.axes, config.sizes)
