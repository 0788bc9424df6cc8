"""A model of ours into files that `transformers` reads."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer.checkpoint import replacement
from jaxformer.config import Config
from jaxformer.families import find_family
from jaxformer.families.family import Family
from jaxformer.families.fields import Fields
from jaxformer.families.fill import wanted
from jaxformer.families.layout import to_theirs
from jaxformer.families.rotary import shortest
from jaxformer.params import Params, check_params, stacked
from jaxformer.spec import path_name
from jaxformer.tokenizer import Tokenizer
from jaxformer.vocabularies import save_tokenizer


def export(
    folder: str | os.PathLike[str],
    config: Config,
    params: Params,
    tokenizer: Tokenizer | None,
    family: str,
) -> None:
    """Write a model as `transformers` keeps those of a family: config.json, model.safetensors, tokenizer.json.

    The weights keep their dtype, and `jaxformer.load` of the folder gives back the very same bits.

    Args:
        folder: made if it is not there; the files that it may have of these names are replaced.
        config: of the model.
        params: as `init` and `load` give them.
        tokenizer: one of `load`'s, or None.
        family: "gpt2", "llama", ...: a name in `jaxformer.families.FAMILIES`.

    Raises:
        ValueError: an unknown family; a Config that its models cannot have; parameters of another Config; a tokenizer
            that is no subword tokenizer.
    """
    from safetensors.numpy import save

    kind = find_family(family, "the family to export to")
    check_params(params, config)
    stacked(params, config)
    fields = foreign_config(kind, config)
    tensors = foreign_tensors(kind, config, params)
    dtype = str(params.W_E.dtype)
    fields = {
        "architectures": [kind.architecture],
        "model_type": kind.name,
        "dtype": dtype,
    } | fields
    if tokenizer is not None and tokenizer.n_vocab > config.n_vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.n_vocab} entries, the Config n_vocab={config.n_vocab}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        save_tokenizer(folder, tokenizer)
    with replacement(folder / "model.safetensors") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    with replacement(folder / "config.json") as file:
        file.write(json.dumps(fields, indent=2).encode())


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
    arrays = {
        path_name(path): np.asarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(params)
    }
    tensors = {}
    for row in wanted(family, config):
        own = [arrays[place] for place in row.weight.places]
        for layer, name in enumerate(row.tensors):
            parts = [array[layer] for array in own] if row.specs[0].axes[0] == "l" else own
            tensors[name] = to_theirs(parts, row.weight.layout, row.axes, config.sizes)
    return tensors
