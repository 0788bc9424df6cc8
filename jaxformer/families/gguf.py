"""GGUF files, as llama.cpp keeps models: their own names for configs and tensors, to those of our families.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxformer.config import Config
from jaxformer.families import FAMILIES
from jaxformer.families.family import Family, Weight
from jaxformer.families.fields import Fields
from jaxformer.formats import Source

COMMON = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "vocab_size": "vocab_size",
}
"""A GGUF field, behind the name of its architecture, to transformers' name."""

GPT = COMMON | {
    "block_count": "n_layer", "embedding_length": "n_embd", "feed_forward_length": "n_inner",
    "attention.head_count": "n_head", "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "context_length": "n_positions",
}  # fmt: skip

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "blk.{l}.attn_norm": "layers.{l}.input_layernorm",
    "blk.{l}.ffn_norm": "layers.{l}.post_attention_layernorm",
    "blk.{l}.attn_q": "layers.{l}.self_attn.q_proj",
    "blk.{l}.attn_k": "layers.{l}.self_attn.k_proj",
    "blk.{l}.attn_v": "layers.{l}.self_attn.v_proj",
    "blk.{l}.attn_output": "layers.{l}.self_attn.o_proj",
    "blk.{l}.attn_q_norm": "layers.{l}.self_attn.q_norm",
    "blk.{l}.attn_k_norm": "layers.{l}.self_attn.k_norm",
    "blk.{l}.ffn_gate": "layers.{l}.mlp.gate_proj",
    "blk.{l}.ffn_up": "layers.{l}.mlp.up_proj",
    "blk.{l}.ffn_down": "layers.{l}.mlp.down_proj",
}
"""A GGUF tensor to transformers' name, for the families that grew from Llama."""

POST_NORMS = {
    "blk.{l}.post_attention_norm": "layers.{l}.post_attention_layernorm",
    "blk.{l}.post_ffw_norm": "layers.{l}.post_feedforward_layernorm",
}
BOTH_NORMS = POST_NORMS | {"blk.{l}.ffn_norm": "layers.{l}.pre_feedforward_layernorm"}

GPT_NAMES = {
    "token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f",
    "blk.{l}.attn_norm": "h.{l}.ln_1", "blk.{l}.ffn_norm": "h.{l}.ln_2",
    "blk.{l}.attn_qkv": "h.{l}.attn.c_attn", "blk.{l}.attn_output": "h.{l}.attn.c_proj",
    "blk.{l}.ffn_up": "h.{l}.mlp.c_fc", "blk.{l}.ffn_down": "h.{l}.mlp.c_proj",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """One architecture of GGUF."""

    family: Family
    fields: Mapping[str, str]
    names: Mapping[str, str]
    paired: bool = False
    """llama.cpp turns neighbouring coordinates where we turn halves: rows of Q and K lie in its order"""
    transposed: bool = False
    """the family's files have matrices as [in out], GGUF as [out in]"""


DIALECTS = {
    "llama": Dialect(family=FAMILIES["llama"], fields=COMMON, names=NAMES, paired=True),
    "gpt2": Dialect(family=FAMILIES["gpt2"], fields=GPT, names=GPT_NAMES, transposed=True),
    "qwen2": Dialect(family=FAMILIES["qwen2"], fields=COMMON, names=NAMES),
    "qwen3": Dialect(family=FAMILIES["qwen3"], fields=COMMON, names=NAMES),
    "gemma2": Dialect(family=FAMILIES["gemma2"], fields=COMMON, names=NAMES | BOTH_NORMS),
    "gemma3": Dialect(family=FAMILIES["gemma3_text"], fields=COMMON, names=NAMES | BOTH_NORMS),
    "olmo2": Dialect(family=FAMILIES["olmo2"], fields=COMMON, names=NAMES | POST_NORMS),
}
"""By `general.architecture`; files of Mistral's models say llama."""

HARMLESS = re.compile(r"(general|tokenizer|quantize|split|GGUF)\..*")
UNREAD = frozenset({"rope.dimension_count", "attention.value_length"})


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
        ValueError: a field that jaxformer cannot compute with, or does not know.
    """
    name, dialect = open_dialect(metadata, source.path)
    where = f"{source.path} ({name})"
    theirs: dict[str, Any] = {}
    for key, value in metadata.items():
        own = key.removeprefix(f"{name}.")
        if own == key:
            if not HARMLESS.fullmatch(key):
                raise ValueError(f"{where} has {key}, a field that jaxformer does not know")
        elif own in dialect.fields:
            # its floats have 32 bits: 1e-5 comes as 9.999999747e-06
            theirs[dialect.fields[own]] = (
                float(str(np.float32(value))) if isinstance(value, float) else value
            )
        elif own.startswith("expert_") and value:
            raise ValueError(
                f"{where} has {key}={value}: a mixture of experts, which jaxformer does not have"
            )
        elif own not in UNREAD and not own.startswith(("rope.scaling.", "expert_")):
            raise ValueError(
                f"{where} has {key}={value!r}; jaxformer does not know this field, "
                "and will not guess that it changes nothing"
            )
    theirs |= _shapes(source, dialect, theirs)
    theirs |= _specials(name, theirs, metadata)
    _check_rotary(name, metadata, theirs, where)
    if scaling := _scaling(source, metadata, name, where):
        theirs["rope_scaling"] = scaling
    fields = Fields(theirs, where)
    config = dialect.family.read(fields)
    fields.finish()
    return renamed(name, dialect), config


def _shapes(source: Source, dialect: Dialect, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What a GGUF file says by the tensors that it has."""
    found: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in source.tensors}
    embedding = source.tensors.get("token_embd.weight")
    if embedding is not None and "vocab_size" not in theirs:
        found["vocab_size"] = embedding.shape[0]
    if dialect.family.name == "llama":
        found["attention_bias"] = "blk.0.attn_q.bias" in source.tensors
        found["mlp_bias"] = "blk.0.ffn_up.bias" in source.tensors
    return found


def _specials(name: str, theirs: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp knows of an architecture without being told."""
    if name == "gpt2":
        theirs.pop("num_key_value_heads", None)
        theirs.pop("rope_theta", None)
        theirs.pop("head_dim", None)
        return {"activation_function": "gelu_new"}
    if name in ("qwen2", "llama", "qwen3", "olmo2") and theirs.pop("sliding_window", None):
        raise ValueError(
            f"{name}.attention.sliding_window is set; jaxformer does not know which layers have it"
        )
    if name == "gemma2":
        # llama.cpp has the scale of each size of Gemma 2: of the largest it is the stream's width per head
        wide = theirs.get("num_hidden_layers") == 46
        heads = theirs.get("num_attention_heads") or 1
        return {
            "query_pre_attn_scalar": theirs.get("hidden_size", 0) // heads
            if wide
            else theirs.get("head_dim", 256)
        }
    if name == "gemma3":
        wide = theirs.get("num_hidden_layers") == 62
        heads = theirs.get("num_attention_heads") or 1
        return {
            "query_pre_attn_scalar": theirs.get("hidden_size", 0) // heads
            if wide
            else theirs.get("head_dim", 256)
        }
    if name == "qwen2":
        theirs.pop("head_dim", None)
    return {}


def _check_rotary(
    name: str, metadata: Mapping[str, Any], theirs: Mapping[str, Any], where: str
) -> None:
    """Rotary must turn whole heads, and values be as wide as keys."""
    heads = theirs.get("num_attention_heads")
    width = theirs.get("head_dim") or (
        theirs["hidden_size"] // heads if heads and "hidden_size" in theirs else None
    )
    for own in ("rope.dimension_count", "attention.value_length"):
        value = metadata.get(f"{name}.{own}")
        if value is not None and width is not None and value != width and name != "gpt2":
            raise ValueError(
                f"{where} has {name}.{own}={value}, and heads of width {width}; jaxformer needs the same"
            )


def _scaling(source: Source, metadata: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """How rotary is slowed: by a field, or by a tensor of a factor per pair, in which Llama 3's rule is recognised."""
    known = {
        f"{name}.rope.scaling.{own}": own
        for own in ("type", "factor", "original_context_length", "finetuned")
    }
    given = {
        key: value for key, value in metadata.items() if key.startswith(f"{name}.rope.scaling.")
    }
    if unknown := given.keys() - known.keys():
        raise ValueError(f"{where} has {min(unknown)}, a field that jaxformer does not know")
    kind = given.get(f"{name}.rope.scaling.type", "none")
    factor = given.get(f"{name}.rope.scaling.factor")
    if kind not in ("none", "linear"):
        raise ValueError(
            f"{where} has {name}.rope.scaling.type={kind!r}; jaxformer reads 'none' and 'linear'"
        )
    if kind == "linear" and factor:
        return {"rope_type": "linear", "factor": factor}
    if "rope_freqs.weight" not in source.tensors:
        return {}
    return _llama3(
        source.read("rope_freqs.weight"), metadata.get(f"{name}.rope.freq_base", 10_000.0), where
    )


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


def renamed(name: str, dialect: Dialect) -> Family:
    """The family with the tensors of a GGUF file."""
    theirs = {known: own for own, known in dialect.names.items()}
    plus = -1.0 if name.startswith("gemma") else 0.0

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
        shift = -plus if plus and "norm" in weight.name else 0.0
        return Weight(f"{theirs[stem]}.{kind}", layout, weight.places, shift)

    rows = tuple(kept for weight in dialect.family.weights if (kept := row(weight)) is not None)
    return dataclasses.replace(
        dialect.family, prefix="", weights=rows, head="output.weight", buffers=r"rope_freqs\.weight"
    )
