"""A model's parameters as a table."""

import math

import jax

from jaxformer.config import Config
from jaxformer.model.params import count, specs
from jaxformer.model.spec import is_spec, path_name


def summary(config: Config) -> str:
    """Return a table of the parameters: their names, axes, shapes and counts.

    >>> print(summary(Config(n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512, n_vocab=65)))
    name             axes     shape        count
    W_E              v d      65 128       8,320
    blocks.attn.W_Q  l d n h  4 128 4 32  65,536
    blocks.attn.W_K  l d k h  4 128 4 32  65,536
    blocks.attn.W_V  l d k h  4 128 4 32  65,536
    blocks.attn.W_O  l n h d  4 4 32 128  65,536
    blocks.mlp.W_in  l d f    4 128 512  262,144
    blocks.mlp.W_out l f d    4 512 128  262,144
    W_U              d v      128 65       8,320
    total                                803,072
    """
    rows = [("name", "axes", "shape", "count")]
    for path, spec in jax.tree_util.tree_leaves_with_path(specs(config), is_leaf=is_spec):
        sizes = " ".join(map(str, spec.shape))
        rows.append((path_name(path), " ".join(spec.axes), sizes, f"{math.prod(spec.shape):,}"))
    rows.append(("total", "", "", f"{count(config):,}"))
    name, axes, shape, number = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"{n:{name}} {a:{axes}}  {s:{shape}} {c:>{number}}" for n, a, s, c in rows]
    return "\n".join(lines)
