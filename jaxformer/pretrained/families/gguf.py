"""Conversion of llama.cpp's GGUF files: their metadata and tensor names become those of a family."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxformer.config import Config
from jaxformer.pretrained.families.family import Family, Weight
from jaxformer.pretrained.families.gguf_names import DIALECTS, Dialect
from jaxformer.pretrained.families.hf_config import Fields
from jaxformer.pretrained.families.layer_types import GLOBAL, LOCAL
from jaxformer.pretrained.formats import Source

UNREAD = frozenset(
    {"tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"}
)
"""Fields of an architecture that change no logit. (Fields that belong to no architecture never do.)"""

REQUIRED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
"""Fields that every file must have, besides the norms' epsilon."""


def open_dialect(fields: Mapping[str, Any], path: Any) -> tuple[str, Dialect]:
    """Return the name of a file's architecture, and the architecture.

    Raises:
        ValueError: it is missing, or one that jaxformer cannot read.
    """
    name = fields.get("general.architecture")
    if not isinstance(name, str) or name not in DIALECTS:
        raise ValueError(
            f"{path} has general.architecture={name!r}; jaxformer reads GGUF files of {', '.join(DIALECTS)}"
        )
    return name, DIALECTS[name]


def read_config(
    source: Source, metadata: Mapping[str, Any], ignored: frozenset[str] = frozenset()
) -> tuple[Family, Config]:
    """Return the family, with the tensor names of this file, and the Config.

    Raises:
        ValueError: a field that jaxformer cannot compute or does not know and that is not ignored; a missing field;
            the name of an ignored field that the file does not have or that jaxformer needs.
    """
    name, dialect = open_dialect(metadata, source.path)
    where = f"{source.path} ({name})"
    own = {
        key.removeprefix(f"{name}."): _plain(value)
        for key, value in metadata.items()
        if key.startswith(f"{name}.")
    }
    shown = {hf_name: f"{name}.{key}" for key, hf_name in dialect.fields.items()}
    if not dialect.largest:  # the family reads a window of config.json, and none of the file
        shown.pop("sliding_window", None)
    given = Fields(own, where, {key: f"{name}.{key}" for key in own}, ignored)
    given.check_ignored()
    epsilon = next(key for key in dialect.fields if key.endswith("epsilon"))
    if missing := [key for key in (*REQUIRED, epsilon) if key not in own]:
        raise ValueError(f"{where} lacks {name}.{missing[0]}, which llama.cpp requires")
    if experts := [key for key in own if key.startswith("expert_") and own[key]]:
        raise ValueError(
            f"{given.say(experts[0])}: a mixture of experts, which jaxformer does not support"
        )
    given.ignore(*UNREAD, *dialect.fields, *(key for key in own if key.startswith("expert_")))
    values = {dialect.fields[key]: value for key, value in own.items() if key in dialect.fields}
    values |= _from_tensors(source, dialect, values) | dict(dialect.implied)
    if dialect.family.name != "gpt2":
        values = _with_defaults(given, dialect, Fields(values, where, shown, ignored))
        if scaling := _scaling(source, given, Fields(values, where, shown, ignored)):
            values["rope_scaling"] = scaling
    given.demand("attention.causal", True)
    given.finish()
    fields = Fields(values, where, shown, ignored)
    config = dialect.family.read(fields)
    fields.finish()
    return renamed(dialect), config


def _plain(value: Any) -> Any:
    """Return a value as config.json has it: one number instead of equal ones per layer, floats in their short form."""
    if isinstance(value, list) and value and all(other == value[0] for other in value):
        value = value[0] if not isinstance(value[0], bool) else value
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _from_tensors(source: Source, dialect: Dialect, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config's fields that follow from which tensors the file has."""
    found: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in source.tensors}
    embedding = source.tensors.get("token_embd.weight")
    if embedding is not None and "vocab_size" not in values:
        found["vocab_size"] = embedding.shape[0]
    if dialect.family.name == "llama":
        found["attention_bias"] = "blk.0.attn_q.bias" in source.tensors
        found["mlp_bias"] = "blk.0.ffn_up.bias" in source.tensors
    return found


def _with_defaults(given: Fields, dialect: Dialect, sizes: Fields) -> dict[str, Any]:
    """Add llama.cpp's defaults to the config's fields, where transformers has others.

    Raises:
        ValueError: a size below 1; rotary on part of each head; values of another width than keys; a window whose
            layers neither the file nor the architecture determines.
    """
    n_layers, heads = sizes.layers("num_hidden_layers", 0), sizes.size("num_attention_heads")
    width = sizes.size("head_dim", None) or sizes.size("hidden_size") // heads
    for key in ("rope.dimension_count", "attention.value_length"):
        given.demand(key, width)
    usual = {"num_key_value_heads": heads, "rope_theta": 10_000.0, "head_dim": width}
    values = usual | sizes.values
    if not dialect.largest:
        given.demand("attention.sliding_window", 0)
        return {key: value for key, value in values.items() if key != "sliding_window"}
    scalar = sizes.size("hidden_size") // heads if n_layers == dialect.largest else width
    types = _layer_types(given, n_layers)
    if "sliding_window" not in values and dialect.family.name == "gemma3_text":
        types = [GLOBAL] * n_layers
    values |= {} if types is None else {"layer_types": types}
    return values | {"query_pre_attn_scalar": scalar}


def _layer_types(given: Fields, n_layers: int) -> list[str] | None:
    """Return the type of each layer, from a list of booleans or from the period of global layers; None: the default."""
    name = "attention.sliding_window_pattern"
    if isinstance(given.values.get(name), list):
        local = given.take(name, "list")
    else:
        period = given.size(name, None)
        if period is None:
            return None
        local = [(i + 1) % period != 0 for i in range(n_layers)]
    return [LOCAL if each else GLOBAL for each in local]


def _scaling(source: Source, given: Fields, sizes: Fields) -> dict[str, Any]:
    """Return the rotary scaling, from fields or from a tensor of factors, which must follow Llama 3's rule."""
    factor = given.take("rope.scaling.factor", "number", None)
    usual = "none" if factor is None else "linear"  # llama.cpp's default
    kind = given.kind("rope.scaling.type", ("none", "linear"), usual)
    if kind is None:  # without the kind its other fields have no meaning
        given.ignore(*(key for key in given.values if key.startswith("rope.scaling.")))
    else:
        given.demand("rope.scaling.attn_factor", 1.0)
    if kind == "linear" and "rope_freqs.weight" in source.tensors:
        raise ValueError(
            f"{given.where} has both rope.scaling fields and rope_freqs.weight; jaxformer reads only one of them"
        )
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if "rope_freqs.weight" not in source.tensors:
        return {}
    factors, width = source.read("rope_freqs.weight"), sizes.size("head_dim")
    if factors.shape != (width // 2,):
        raise ValueError(
            f"{given.where} has rope_freqs.weight of shape {factors.shape}, but heads of width {width}"
        )
    if (factors == 1).all():
        return {}
    return _llama3(factors, float(sizes.take("rope_theta", "number")), given.where)


def _llama3(factors: np.ndarray, base: float, where: str) -> dict[str, Any]:
    """Return Llama 3's scaling with its published parameters, if it gives these factors."""
    factor = float(factors.max())
    turns = 8192 / (2 * np.pi) * base ** -(np.arange(len(factors)) / len(factors))
    unscaled = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    if not np.allclose(1 / factors, unscaled + (1 - unscaled) / factor, rtol=1e-4):
        raise ValueError(
            f"{where} has rope_freqs.weight with factors other than Llama 3's; jaxformer supports only those"
        )
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


def renamed(dialect: Dialect) -> Family:
    """Return the architecture's family with the tensor names and layouts of a GGUF file."""
    gguf_names = {hf_name: name for name, hf_name in dialect.names.items()}

    def row(weight: Weight) -> Weight | None:
        stem, _, kind = weight.name.rpartition(".")
        if stem not in gguf_names:
            return None
        layout = weight.layout
        if (
            dialect.transposed
            and kind == "weight"
            and len(layout.split()) == 2
            and stem not in ("wte", "wpe")
        ):
            layout = " ".join(reversed(layout.split()))
        if dialect.paired and stem.endswith(("q_proj", "k_proj")):
            layout = layout.replace("h", "h~", 1)
        # Gemma's norms multiply by 1 + w; llama.cpp's converter stores 1 + w.
        shift = 1.0 if dialect.largest and "norm" in weight.name else 0.0
        return Weight(f"{gguf_names[stem]}.{kind}", layout, weight.places, shift)

    rows = tuple(kept for weight in dialect.family.weights if (kept := row(weight)) is not None)
    return dataclasses.replace(
        dialect.family, prefix="", weights=rows, head="output.weight", buffers=r"rope_freqs\.weight"
    )
