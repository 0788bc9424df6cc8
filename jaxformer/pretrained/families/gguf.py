"""A GGUF file, as llama.cpp keeps models, as a model of one of our families."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxformer.config import Config
from jaxformer.pretrained.families.family import Family, Weight
from jaxformer.pretrained.families.fields import Fields
from jaxformer.pretrained.families.gguf_names import DIALECTS, Dialect
from jaxformer.pretrained.families.windows import GLOBAL, LOCAL
from jaxformer.pretrained.formats import Source

UNREAD = frozenset(
    {"tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"}
)
"""Fields of any architecture by which nothing is computed. (Nothing is by those that belong to no architecture.)"""

NEEDED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
"""Fields that every file must have; and the norms' epsilon."""


def open_dialect(fields: Mapping[str, Any], path: Any) -> tuple[str, Dialect]:
    """The architecture that a file says it is of.

    Raises:
        ValueError: none, or one that jaxformer cannot read.
    """
    name = fields.get("general.architecture")
    if not isinstance(name, str) or name not in DIALECTS:
        raise ValueError(
            f"{path} has general.architecture={name!r}; of GGUF files jaxformer reads {', '.join(DIALECTS)}"
        )
    return name, DIALECTS[name]


def read_config(source: Source, metadata: Mapping[str, Any]) -> tuple[Family, Config]:
    """The family whose tensors have this file's names, and our Config.

    Raises:
        ValueError: a field that jaxformer cannot compute with, or does not know; or one that is missing.
    """
    name, dialect = open_dialect(metadata, source.path)
    where = f"{source.path} ({name})"
    own = {
        key.removeprefix(f"{name}."): _plain(value)
        for key, value in metadata.items()
        if key.startswith(f"{name}.")
    }
    shown = {theirs: f"{name}.{key}" for key, theirs in dialect.fields.items()}
    given = Fields(own, where, {key: f"{name}.{key}" for key in own})
    epsilon = next(key for key in dialect.fields if key.endswith("epsilon"))
    if missing := [key for key in (*NEEDED, epsilon) if key not in own]:
        raise ValueError(f"{where} lacks {name}.{missing[0]}")
    if experts := [key for key in own if key.startswith("expert_") and own[key]]:
        raise ValueError(
            f"{given.say(experts[0])}: a mixture of experts, which jaxformer does not have"
        )
    given.ignore(*UNREAD, *dialect.fields, *(key for key in own if key.startswith("expert_")))
    theirs = {dialect.fields[key]: value for key, value in own.items() if key in dialect.fields}
    theirs |= _by_tensors(source, dialect, theirs) | dict(dialect.unsaid)
    if dialect.family.name != "gpt2":
        theirs = _unsaid(given, dialect, Fields(theirs, where, shown))
        if scaling := _scaling(source, given, Fields(theirs, where, shown)):
            theirs["rope_scaling"] = scaling
    given.demand("attention.causal", True)
    given.finish()
    fields = Fields(theirs, where, shown)
    config = dialect.family.read(fields)
    fields.finish()
    return renamed(dialect), config


def _plain(value: Any) -> Any:
    """A value as a config has it: of equal numbers for each layer one; a float of 32 bits as it was written down."""
    if isinstance(value, list) and value and all(other == value[0] for other in value):
        value = value[0] if not isinstance(value[0], bool) else value
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _by_tensors(source: Source, dialect: Dialect, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What a GGUF file says by the tensors that it has."""
    found: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in source.tensors}
    embedding = source.tensors.get("token_embd.weight")
    if embedding is not None and "vocab_size" not in theirs:
        found["vocab_size"] = embedding.shape[0]
    if dialect.family.name == "llama":
        found["attention_bias"] = "blk.0.attn_q.bias" in source.tensors
        found["mlp_bias"] = "blk.0.ffn_up.bias" in source.tensors
    return found


def _unsaid(given: Fields, dialect: Dialect, sizes: Fields) -> dict[str, Any]:
    """The config's fields with what llama.cpp knows without being told, where transformers would take something else.

    Raises:
        ValueError: sizes that are none; heads of which rotary turns a part, or whose values have another width; a
            window of which nobody says which layers have it.
    """
    n_layers, heads = sizes.layers("num_hidden_layers", 0), sizes.size("num_attention_heads")
    width = sizes.size("head_dim", None) or sizes.size("hidden_size") // heads
    for key in ("rope.dimension_count", "attention.value_length"):
        given.demand(key, width)
    usual = {"num_key_value_heads": heads, "rope_theta": 10_000.0, "head_dim": width}
    theirs = usual | sizes.values
    if not dialect.largest:
        given.demand("attention.sliding_window", 0)
        return {key: value for key, value in theirs.items() if key != "sliding_window"}
    whole = sizes.size("hidden_size") // heads if n_layers == dialect.largest else width
    types = _layer_types(given, n_layers)
    if "sliding_window" not in theirs and dialect.family.name == "gemma3_text":
        types = [GLOBAL] * n_layers
    theirs |= {} if types is None else {"layer_types": types}
    return theirs | {"query_pre_attn_scalar": whole}


def _layer_types(given: Fields, n_layers: int) -> list[str] | None:
    """Which layers have the window, by a truth value for each or by the period of those without; None: as usual."""
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
    """How rotary is slowed: by fields, or by a tensor of a factor per pair, in which Llama 3's rule is recognised."""
    factor = given.take("rope.scaling.factor", "number", None)
    usual = "none" if factor is None else "linear"  # llama.cpp's own default
    kind = given.take("rope.scaling.type", "text", usual)
    given.demand("rope.scaling.attn_factor", 1.0)
    if kind not in ("none", "linear"):
        raise ValueError(f"{given.say('rope.scaling.type')}; jaxformer reads 'none' and 'linear'")
    if kind == "linear" and "rope_freqs.weight" in source.tensors:
        raise ValueError(
            f"{given.where} has a rope.scaling and rope_freqs.weight; jaxformer reads one of them"
        )
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if "rope_freqs.weight" not in source.tensors:
        return {}
    factors, width = source.read("rope_freqs.weight"), sizes.size("head_dim")
    if factors.shape != (width // 2,):
        raise ValueError(
            f"{given.where} has rope_freqs.weight of shape {factors.shape}, and heads of width {width}"
        )
    if (factors == 1).all():
        return {}
    return _llama3(factors, float(sizes.take("rope_theta", "number")), given.where)


def _llama3(factors: np.ndarray, base: float, where: str) -> dict[str, Any]:
    """Llama 3's rule with the published numbers, if it gives these factors."""
    factor = float(factors.max())
    turns = 8192 / (2 * np.pi) * base ** -(np.arange(len(factors)) / len(factors))
    kept = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    if not np.allclose(1 / factors, kept + (1 - kept) / factor, rtol=1e-4):
        raise ValueError(
            f"{where} has rope_freqs.weight, factors that are not Llama 3's; jaxformer knows no others"
        )
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


def renamed(dialect: Dialect) -> Family:
    """The family with the tensors of a GGUF file."""
    theirs = {known: own for own, known in dialect.names.items()}

    def row(weight: Weight) -> Weight | None:
        stem, _, kind = weight.name.rpartition(".")
        if stem not in theirs:
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
        # llama.cpp adds the 1 of Gemma's norms when it converts them
        shift = 1.0 if dialect.largest and "norm" in weight.name else 0.0
        return Weight(f"{theirs[stem]}.{kind}", layout, weight.places, shift)

    rows = tuple(kept for weight in dialect.family.weights if (kept := row(weight)) is not None)
    return dataclasses.replace(
        dialect.family, prefix="", weights=rows, head="output.weight", buffers=r"rope_freqs\.weight"
    )
