"""What a family is: how its config reads, and which of its tensors holds which of our arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxformer.config import Config
from jaxformer.pretrained.families.fields import Fields


class Weight(NamedTuple):
    """One foreign tensor, or one of every layer.

    `layout` names its axes by the letters of the dimension key: those joined by dots are one axis of the tensor,
    `*` counts several places that share the tensor, and `h~` is a head's width whose two halves were shuffled
    into pairs. `d *.n.h` is a matrix that reads the stream and gives Q, K and V of all heads, side by side.
    """

    name: str
    """`{l}` stands for the layer"""
    layout: str
    places: tuple[str, ...]
    """of our arrays, as `blocks.attn.W_Q`; a model that lacks them lacks the tensor"""
    plus: float = 0.0
    """what the file has added to our numbers"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of model as `transformers` keeps it."""

    name: str
    """its `model_type`"""
    architecture: str
    """the class in transformers that has logits"""
    prefix: str
    """before the names of all weights but the head's; models saved without their head lack it"""
    weights: tuple[Weight, ...]
    head: str = "lm_head.weight"
    """the unembedding, [v d]; where it is tied, files may hold it a second time"""
    other_head: str = ""
    """another name that files may have for it"""
    buffers: str = r"(?!)"
    """a pattern of names that old files hold besides weights: masks, rotary frequencies"""
    read: Callable[[Fields], Config]
    """our Config of theirs"""
    write: Callable[[Config], Mapping[str, Any]]
    """theirs of ours, as well as it can: whoever writes it reads it again to see"""


def linear(name: str, layout: str, weight: str, bias: str) -> tuple[Weight, Weight]:
    """A linear map's two tensors; the bias has the axes that the weight writes, which its layout names first."""
    return (
        Weight(f"{name}.weight", layout, (weight,)),
        Weight(f"{name}.bias", layout.split()[0], (bias,)),
    )


def normed(name: str, place: str) -> tuple[Weight, Weight]:
    """A norm's two tensors."""
    return (
        Weight(f"{name}.weight", "d", (f"{place}.w",)),
        Weight(f"{name}.bias", "d", (f"{place}.b",)),
    )
