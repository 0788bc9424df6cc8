"""Families of published models. Each has a file with its table of tensor names and its conversion of configs.

`family` defines a Family; `hf_config`, `rotary` and `layer_types` read config fields; `known_fields` and `ignored`
name fields that are not read; `layout` converts the axes of tensors; `tensor_map` checks the tensors of a file;
`reader` reads them; `gguf` reads the families' GGUF files.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.pretrained.families.family import Family
from jaxformer.pretrained.families.gemma2 import GEMMA2
from jaxformer.pretrained.families.gemma3 import GEMMA3
from jaxformer.pretrained.families.gpt2 import GPT2
from jaxformer.pretrained.families.gpt_neo import GPT_NEO
from jaxformer.pretrained.families.gpt_neox import GPT_NEOX
from jaxformer.pretrained.families.llama import LLAMA
from jaxformer.pretrained.families.mistral import MISTRAL
from jaxformer.pretrained.families.olmo2 import OLMO2
from jaxformer.pretrained.families.qwen2 import QWEN2
from jaxformer.pretrained.families.qwen3 import QWEN3

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        GPT2, GPT_NEO, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, OLMO2,
    )
}  # fmt: skip
"""The families by transformers' `model_type`."""


def find_family(name: Any, where: str) -> Family:
    """Return the family of this name.

    Raises:
        ValueError: an unknown family, such as a mixture of experts or Gemma 3 with image input.
    """
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    raise ValueError(f"{where} has model_type={name!r}; jaxformer supports {', '.join(FAMILIES)}")
