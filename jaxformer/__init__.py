"""A GPT-style Transformer as pure functions over parameter pytrees.

Read in this order: `config`, `stream`, `attention`, `mlp`, `transformer`; then `norm` and `position`
(what later GPTs added), `sites` (how to look inside), `spec` (how parameters begin), and beside them
`reference`, the same model in plain Python.

The dimension key, the same letters in every einsum and every annotation:

    l  layer                             n  head
    b  batch                             k  key/value head
    t  position (query, destination)     g  query heads per key/value head
    s  position (key, source)            h  head width
    d  model (residual stream)           f  MLP neuron
    c  position-table row                v  vocabulary
"""

from jaxformer.cache import Cache, empty_cache
from jaxformer.checkpoint import load, save
from jaxformer.config import Compute, Config
from jaxformer.params import Block, Params, abstract, count, init, partition, specs, unstack
from jaxformer.sites import SITES, Edit, keep, shown
from jaxformer.stream import query, update
from jaxformer.tokenizer import Bytes, Characters, Tokenizer, Words
from jaxformer.transformer import Output, block, embed, forward, unembed

__all__ = [
    "SITES",
    "Block",
    "Bytes",
    "Cache",
    "Characters",
    "Compute",
    "Config",
    "Edit",
    "Output",
    "Params",
    "Tokenizer",
    "Words",
    "abstract",
    "block",
    "count",
    "embed",
    "empty_cache",
    "forward",
    "init",
    "keep",
    "load",
    "partition",
    "query",
    "save",
    "shown",
    "specs",
    "unembed",
    "unstack",
    "update",
]
