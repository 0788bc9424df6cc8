"""A GPT-style Transformer as pure functions over parameter pytrees.

Read `config`, then `model`, in the order of its README, and beside it `reference`, the same model in plain Python.
`decoding` continues a text, `pretrained` loads and saves models, `interp` takes a model apart. `interp` is imported at
its first use.

The dimension key, the same letters in every einsum and every annotation:

    l  layer                             g  query heads per key/value head
    b  batch                             h  head width
    t  position (query, destination)     f  MLP neuron
    s  position (key, source)            v  vocabulary
    d  model (residual stream)           c  position-table row
    n  head                              r  positions read
    k  key/value head                    w  beams (width)
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxformer.config import Compute, Config, Rotary
from jaxformer.decoding.beam import Beams, beam_search
from jaxformer.decoding.generation import Generated, generate
from jaxformer.decoding.sampling import Sampling
from jaxformer.decoding.stacking import unstack
from jaxformer.decoding.streaming import stream_tokens
from jaxformer.describe import summary
from jaxformer.likelihood import loss, perplexity, score
from jaxformer.model.attention import attend
from jaxformer.model.cache import Cache, empty_cache
from jaxformer.model.mlp import feed_forward
from jaxformer.model.norm import normalize
from jaxformer.model.params import Block, Params, abstract, count, init, specs
from jaxformer.model.stream import query, update
from jaxformer.model.transformer import Output, block, embed, forward, unembed
from jaxformer.pretrained.checkpoint import Model, save
from jaxformer.pretrained.exporting import export
from jaxformer.pretrained.loading import load, load_config
from jaxformer.sharding import constrain, partition, shardings
from jaxformer.sites import SITES, Edit, available_sites, identity
from jaxformer.text.tokenizer import Bytes, Characters, Tokenizer, Words, stream_text

if TYPE_CHECKING:
    from jaxformer import interp as interp
else:

    def __getattr__(name: str) -> Any:
        if name == "interp":
            return importlib.import_module("jaxformer.interp")
        raise AttributeError(f"module 'jaxformer' has no attribute {name!r}")


__all__ = [
    "SITES",
    "Beams",
    "Block",
    "Bytes",
    "Cache",
    "Characters",
    "Compute",
    "Config",
    "Edit",
    "Generated",
    "Model",
    "Output",
    "Params",
    "Rotary",
    "Sampling",
    "Tokenizer",
    "Words",
    "abstract",
    "attend",
    "available_sites",
    "beam_search",
    "block",
    "constrain",
    "count",
    "embed",
    "empty_cache",
    "export",
    "feed_forward",
    "forward",
    "generate",
    "identity",
    "init",
    "load",
    "load_config",
    "loss",
    "normalize",
    "partition",
    "perplexity",
    "query",
    "save",
    "score",
    "shardings",
    "specs",
    "stream_text",
    "stream_tokens", "summary",
    "unembed",
    "unstack",
    "update",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted({*globals(), "interp"})
