"""Families of real models: a file each, with a table of tensor names and a function from their config to ours.

`family` says what one is, `fields` and `rotary` read their configs, `layout` turns their axes into ours, `plan`
checks what a file holds, `fill` reads and `export` writes them.
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
        ValueError: an unknown one; one that mixes experts, which jaxformer does not.
    """
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    known = ", ".join(FAMILIES)
    if isinstance(name, str) and ("moe" in name or name in _EXPERTS):
        raise ValueError(
            f"{where} is a {name} model, a mixture of experts, which jaxformer does not have; "
            f"it has {known}"
        )
    if name == "gemma3":
        raise ValueError(
            f"{where} is a gemma3 model of texts and pictures; jaxformer has gemma3_text, its text model alone"
        )
    raise ValueError(f"{where} has model_type={name!r}; jaxformer has {known}")


_EXPERTS = (
    "mixtral",
    "dbrx",
    "deepseek_v2",
    "deepseek_v3",
    "jamba",
    "llama4",
    "llama4_text",
    "gpt_oss",
)
