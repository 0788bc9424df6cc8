"""Families of real models: a file each, with a table of tensor names and a function from their config to ours.

`family` says what one is, `fields` and `rotary` read their configs, `layout` turns their axes into ours, `plan`
checks what a file holds, `fill` reads it.
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
"""By transformers' `model_type`."""


def find_family(name: Any, where: str) -> Family:
    """The family of this name.

    Raises:
        ValueError: an unknown one, as are those that mix experts, and Gemma 3 with pictures.
    """
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    raise ValueError(f"{where} has model_type={name!r}; jaxformer has {', '.join(FAMILIES)}")
