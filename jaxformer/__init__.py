"""A GPT-style Transformer as pure functions over parameter pytrees.

Read in this order: `config`, `stream`, `attention`, `mlp`, `transformer`; then `norm` and `position`
(what later GPTs added), `sites` (how to look inside), `spec` and `params` (how parameters begin), `cache`,
`sampling`, `reading`, `decode` and `generate` (how a text goes on), and beside them `reference`, the same model in
plain Python.

The dimension key, the same letters in every einsum and every annotation:

    l  layer                             n  head
    b  batch                             k  key/value head
    t  position (query, destination)     g  query heads per key/value head
    s  position (key, source)            h  head width
    d  model (residual stream)           f  MLP neuron
    c  position-table row                v  vocabulary
"""

from jaxformer.beam import Beams, beam_search
from jaxformer.cache import Cache, empty_cache
from jaxformer.checkpoint import save
from jaxformer.config import Compute, Config
from jaxformer.families.export import export
from jaxformer.generate import Generated, generate
from jaxformer.params import Block, Params, abstract, count, init, specs, unstack
from jaxformer.pretrained import load, load_config
from jaxformer.sampling import Sampling
from jaxformer.score import perplexity, score
from jaxformer.sharding import constrain, partition, shardings
from jaxformer.sites import SITES, Edit, keep, shown
from jaxformer.stream import query, update
from jaxformer.streaming import stream_tokens
from jaxformer.tokenizer import Bytes, Characters, Tokenizer, Words, stream_text
from jaxformer.transformer import Output, block, embed, forward, unembed

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
    "Output",
    "Params",
    "Sampling",
    "Tokenizer",
    "Words",
    "abstract",
    "beam_search",
    "block",
    "constrain",
    "count",
    "embed",
    "empty_cache",
    "export",
    "forward",
    "generate",
    "init",
    "keep",
    "load",
    "load_config",
    "partition",
    "perplexity",
    "query",
    "save",
    "score",
    "shardings",
    "shown",
    "specs",
    "stream_text",
    "stream_tokens",
    "unembed",
    "unstack",
    "update",
]
