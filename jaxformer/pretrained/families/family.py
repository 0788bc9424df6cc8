"""The definition of a family: how its config is converted, and which tensors hold which parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxformer.config import Config
from jaxformer.pretrained.families.hf_config import Fields


class Weight(NamedTuple):
    """A row of a family's table: one tensor of a file, or one per layer.

    `layout` names the tensor's axes by the letters of the dimension key. Letters joined by dots are merged into one
    axis; `*` is an axis over several parameters in the same tensor; `h~` is the head width with its two halves
    interleaved. For example, `d *.n.h` is a matrix that computes Q, K and V of all heads from the stream.
    """

    name: str
    """with `{l}` for the layer's index"""
    layout: str
    places: tuple[str, ...]
    """the parameters in the tensor, such as `blocks.attn.W_Q`; a model without them lacks the tensor"""
    plus: float = 0.0
    """what the file adds to the parameters' values"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture of `transformers`: how its files differ from jaxformer's."""

    name: str
    """`model_type` in config.json"""
    architecture: str
    """the class in transformers that computes logits"""
    prefix: str
    """prefix of all tensor names except the unembedding's; models saved without an unembedding lack the prefix"""
    weights: tuple[Weight, ...]
    head: str = "lm_head.weight"
    """the unembedding, [v d]; if it is tied, a file may still hold it, as a copy of the embedding"""
    other_head: str = ""
    """another name that some files use for the unembedding"""
    buffers: str = r"(?!)"
    """a pattern for tensors of old files that are not parameters: masks, rotary frequencies"""
    read: Callable[[Fields], Config]
    """converts a config.json to a Config"""
    write: Callable[[Config], Mapping[str, Any]]
    """converts a Config to config.json, which may not express all of the Config: read it back to check"""


def linear(name: str, layout: str, weight: str, bias: str) -> tuple[Weight, Weight]:
    """Return the rows of a linear map's weight and bias. The layout's first axis is the output, the bias's axis."""
    return (
        Weight(f"{name}.weight", layout, (weight,)),
        Weight(f"{name}.bias", layout.split()[0], (bias,)),
    )


def normed(name: str, place: str) -> tuple[Weight, Weight]:
    """Return the rows of a LayerNorm's weight and bias."""
    return (
        Weight(f"{name}.weight", "d", (f"{place}.w",)),
        Weight(f"{name}.bias", "d", (f"{place}.b",)),
    )
