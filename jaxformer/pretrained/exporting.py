"""Export a model to files that `transformers` reads."""

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
from jaxformer.config_checks import flat_fields, unread_fields
from jaxformer.model.checks import check_params, stacked
from jaxformer.model.params import Params
from jaxformer.model.spec import path_name
from jaxformer.pretrained.atomic import replace_file, replacement
from jaxformer.pretrained.families import find_family
from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.hf_config import Fields
from jaxformer.pretrained.families.layer_types import shortest
from jaxformer.pretrained.families.layout import foreign_shape, to_theirs
from jaxformer.pretrained.families.tensor_map import wanted
from jaxformer.pretrained.tokenizers import save_tokenizer
from jaxformer.pretrained.tokenizers.folder import FILES, tokenizer_files
from jaxformer.text.tokenizer import Tokenizer

CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
"""The names of dtypes in a safetensors header."""

NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Explicit nulls: without them transformers fills in the family's usual ids, and its `generate` stops at one."""

OTHERS = re.compile(
    r"(model\.safetensors|pytorch_model\.bin)\.index\.json|pytorch_model\.bin"
    r"|(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)|generation_config\.json"
)
"""Files of an older model that would be read together with the new ones, and are deleted."""

UNFINISHED = re.compile(
    rf"\.(config\.json|model\.safetensors|{'|'.join(map(re.escape, FILES))})\.\d+\.partial"
)
"""Files that an interrupted `export` left behind."""


def export(
    folder: str | os.PathLike[str],
    params: Params,
    config: Config,
    tokenizer: Tokenizer | None,
    family: str,
) -> None:
    """Write a model in the format of a family of `transformers`: config.json, model.safetensors, tokenizer.json.

    The weights keep their dtype, and `load` returns them bit for bit. Peak memory is the parameters and one tensor
    (with parameters on an accelerator, also a host copy of each). After a crash the folder holds the old model, the
    new one, or none.

    Args:
        folder: created if it does not exist; an exported model and tokenizer in it are replaced.
        params: in the form that `init` and `load` return.
        tokenizer: a Subwords, as `load` returns it for published models; None: write no tokenizer.
        family: "gpt2", "llama", ...: a name in `jaxformer.pretrained.families.FAMILIES`.

    Raises:
        ValueError: an unknown family; a Config that the family cannot express; parameters of another Config or of
            several dtypes; a tokenizer other than Subwords; a folder with a model that `save` wrote.
        OSError: the folder cannot be created or written.
    """
    check_params(params, config)
    kind = find_family(family, "the family to export to")
    stacked(params, config)
    fields = {
        "architectures": [kind.architecture],
        "model_type": kind.name,
        "dtype": _dtype(params),
        **NO_TOKENS,
        **foreign_config(kind, config),
    }
    tokenizer_files(tokenizer)  # refuses a tokenizer that cannot be exported
    folder = Path(folder)
    if (folder / "model.json").exists():
        raise ValueError(
            f"{folder} holds a model that `save` wrote (model.json); export to another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder, UNFINISHED)
    with replacement(folder / "model.safetensors") as file:
        _write_tensors(file, kind, params, config)
        file.flush()  # a full disk must fail before the old model is deleted
        (folder / "config.json").unlink(missing_ok=True)  # no model until the new one is complete
        _clear(folder, OTHERS)
    save_tokenizer(folder, tokenizer)
    replace_file(folder / "config.json", json.dumps(fields, indent=2).encode())


def _dtype(params: Params) -> str:
    """Return the dtype of all parameters; refuse a mixture."""
    first = str(params.W_E.dtype)
    if first not in CODES:
        raise ValueError(f"W_E is {first}; convert the parameters to one of {', '.join(CODES)}")
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        if str(array.dtype) != first:
            raise ValueError(
                f"W_E is {first}, but {path_name(path)} is {array.dtype}; convert the parameters to one dtype"
            )
    return first


def _clear(folder: Path, names: re.Pattern[str]) -> None:
    for old in sorted(folder.iterdir()):
        if names.fullmatch(old.name):
            old.unlink(missing_ok=True)


def _write_tensors(file: BinaryIO, family: Family, params: Params, config: Config) -> None:
    """Write a safetensors file tensor by tensor; the library's `save_file` needs all tensors in memory.

    Source: huggingface.co/docs/safetensors, Format.
    """
    dtype, offset = np.dtype(params.W_E.dtype), 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for row in wanted(family, config):
        shape = foreign_shape(row.weight.layout, config.sizes, len(row.specs))
        size = math.prod(shape) * dtype.itemsize
        for name in row.tensors:
            header[name] = {
                "dtype": CODES[str(dtype)],
                "shape": shape,
                "data_offsets": [offset, offset + size],
            }
            offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in _tensors(family, params, config):
        little = tensor if sys.byteorder == "little" else tensor.byteswap()
        file.write(little.reshape(-1).view(np.uint8).data)


def foreign_config(family: Family, config: Config) -> dict[str, Any]:
    """Return a Config as the fields of a family's config.json.

    The fields are read back to check that they describe the same model.

    Raises:
        ValueError: naming the Config field that the family cannot express.
    """
    fields = json.loads(json.dumps(family.write(config)))
    written = Fields(fields, f"a {family.name} config")
    try:
        read = family.read(written)
        written.finish()
    except ValueError as error:
        raise ValueError(f"a {family.name} model cannot have this Config: {error}") from error
    found = flat_fields(read)
    for name, value in flat_fields(_canonical(config)).items():
        if value != found[name]:
            raise ValueError(
                f"a {family.name} model cannot have {name}={value!r}; with the rest of this Config "
                f"it must have {name}={found[name]!r}"
            )
    return fields


def _canonical(config: Config) -> Config:
    """Return the Config that `load` returns for the same model: default values where they mean the same."""
    pattern = "".join("L" if local else "G" for local in config.local_layers)
    windowed = "L" in pattern
    unread = unread_fields(config)
    config = Config.from_dict({k: v for k, v in flat_fields(config).items() if k not in unread})
    return dataclasses.replace(
        config,
        n_kv_heads=None if config.n_kv_heads == config.n_heads else config.n_kv_heads,
        attention_scale=None
        if config.score_scale == config.d_head**-0.5
        else config.attention_scale,
        window=config.window if windowed else None,
        window_pattern=shortest(pattern) if windowed else "L",
        rotary=config.rotary if windowed else dataclasses.replace(config.rotary, local_base=None),
    )


def foreign_tensors(family: Family, params: Params, config: Config) -> dict[str, np.ndarray]:
    """Return parameters as the family's tensors, by name."""
    check_params(params, config)
    return dict(_tensors(family, params, config))


def _tensors(family: Family, params: Params, config: Config) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each of the family's tensors, in the order of its table."""
    arrays = {path_name(path): array for path, array in jax.tree_util.tree_leaves_with_path(params)}
    for row in wanted(family, config):
        own = [np.asarray(arrays[place]) for place in row.weight.places]
        for layer, name in enumerate(row.tensors):
            parts = [array[layer] for array in own] if row.specs[0].axes[0] == "l" else own
            yield name, to_theirs(parts, row.weight.layout, row.axes, config.sizes)
