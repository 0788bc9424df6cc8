"""The graph of edge attribution: nodes that write to the residual stream, nodes that read it, and the edges between."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxformer.config import Config


class Node(NamedTuple):
    """One end of an edge: a sender at the site of its output, or a receiver at the site computed from its input."""

    site: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        """Return the label of a row or column, such as L1H0.q or L0.mlp_out."""
        head = "" if self.head is None else f"H{self.head}"
        return self.site if self.layer is None else f"L{self.layer}{head}.{self.site}"


def senders(config: Config) -> tuple[Node, ...]:
    """Return what writes to the stream, in order: the embedding, then each layer's heads and its MLP.

    Biases and the position embedding are left out: they are the same in both runs.

    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> [str(node) for node in senders(config)]
    ['embed', 'L0H0.head_out', 'L0H1.head_out', 'L0.mlp_out']
    """
    nodes = [Node("embed")]
    for layer in range(config.n_layers):
        nodes += [Node("head_out", layer, head) for head in range(config.n_heads)]
        nodes += [Node("mlp_out", layer)] if config.d_mlp else []
    return tuple(nodes)


def receivers(config: Config) -> tuple[Node, ...]:
    """Return what reads the stream, in order: each layer's q, k and v, by head, then its MLP; last the unembedding.

    With a qk_norm, q and k are taken before it. The heads of k and v are key/value heads. An MLP is one node, pre; for
    a gated MLP it includes the gate and the linear part.

    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, n_kv_heads=1)
    >>> [str(node) for node in receivers(config)]
    ['L0H0.q', 'L0H1.q', 'L0H0.k', 'L0H0.v', 'L0.pre', 'final']
    """
    nodes: list[Node] = []
    for layer in range(config.n_layers):
        for site, axis in (("q", "n"), ("k", "k"), ("v", "k")):
            nodes += [Node(site, layer, head) for head in range(config.sizes[axis])]
        nodes += [Node("pre", layer)] if config.d_mlp else []
    return (*nodes, Node("final"))


def edge_mask(config: Config) -> Bool[np.ndarray, "senders receivers"]:
    """Return whether the sender writes before the receiver reads.

    A layer's MLP reads what its heads write, except in a parallel block, where both read the same stream.

    >>> config = Config(n_layers=1, d_model=8, n_heads=1, d_head=4, d_mlp=32, n_vocab=5)
    >>> edge_mask(config).astype(int)  # rows embed, head, MLP; columns q, k, v, MLP, unembedding
    array([[1, 1, 1, 1, 1],
           [0, 0, 0, 1, 1],
           [0, 0, 0, 0, 1]])
    """
    write_time = {"embed": 0, "head_out": 1, "mlp_out": 2}
    mlp_read = 0 if config.parallel else 1
    read_time = {"q": 0, "k": 0, "v": 0, "pre": mlp_read, "final": 2 * config.n_layers}
    writes = np.array([2 * (node.layer or 0) + write_time[node.site] for node in senders(config)])
    reads = np.array([2 * (node.layer or 0) + read_time[node.site] for node in receivers(config)])
    return writes[:, None] <= reads
