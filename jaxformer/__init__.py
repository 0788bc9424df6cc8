"""A GPT-style Transformer as pure functions over parameter pytrees.

Read `config`, then `model` (its files in the order that it names), and beside it `reference`, the same model in plain
Python. `decoding` continues a text, `pretrained` loads and saves, `interp` takes a model apart.

The dimension key, the same letters in every einsum and every annotation:

    l  layer                             n  head
    b  batch                             k  key/value head
    t  position (query, destination)     g  query heads per key/value head
    s  position (key, source)            h  head width
    d  model (residual stream)           f  MLP neuron
    c  position-table row                v  vocabulary
"""

from jaxformer.config import Compute, Config
from jaxformer.decoding.beam import Beams, beam_search
from jaxformer.decoding.generate import Generated, generate
from jaxformer.decoding.sampling import Sampling
from jaxformer.decoding.streaming import stream_tokens
from jaxformer.model.cache import Cache, empty_cache
from jaxformer.model.params import Block, Params, abstract, count, init, specs, unstack
from jaxformer.model.score import perplexity, score
from jaxformer.model.sites import SITES, Edit, keep, shown
from jaxformer.model.stream import query, update
from jaxformer.model.transformer import Output, block, embed, forward, unembed
from jaxformer.pretrained.checkpoint import save
from jaxformer.pretrained.export import export
from jaxformer.pretrained.load import load, load_config
from jaxformer.sharding import constrain, partition, shardings
from jaxformer.text.tokenizer import Bytes, Characters, Tokenizer, Words, stream_text

__all__ = [
    "SITES", "Beams", "Block", "Bytes", "Cache", "Characters", "Compute", "Config", "Edit", "Generated",
    "Output", "Params", "Sampling", "Tokenizer", "Words", "abstract", "beam_search", "block", "constrain",
    "count", "embed", "empty_cache", "export", "forward", "generate", "init", "keep", "load", "load_config",
    "partition", "perplexity", "query", "save", "score", "shardings", "shown", "specs", "stream_text",
    "stream_tokens", "unembed", "unstack", "update",
]  # fmt: skip
