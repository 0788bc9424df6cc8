"""What the devices of a training step should send each other, from the sizes of the model alone."""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, get_args

import jax

from jaxformer.config import Config
from jaxformer.model.params import specs
from jaxformer.model.spec import Spec, is_spec, path_name
from train.plan.collectives import Collective, Kind

Split = Literal["data", "fsdp", "tensor", "sequence"]
"""What is in parts: the batch; the batch and every array along d; heads, neurons and vocabulary; positions.
Each is the name of the mesh axis whose usual rules do that (`jaxformer.sharding.RULES`)."""
SPLITS: tuple[Split, ...] = get_args(Split)
BYTES = 4
"""Of a number: float32."""
NORMS = 2
"""The gradient's norm is taken twice: to clip it, and for the metrics."""


class Step(NamedTuple):
    """A training step of some sizes."""

    config: Config
    batch: int
    context: int
    joined: bool = False
    """the gradients of what several readers share are added before they are summed over devices"""

    @property
    def tokens(self) -> int:
        """Bytes of one number for each token."""
        return BYTES * self.batch * self.context

    @property
    def stream(self) -> int:
        """Bytes of every token's state."""
        return self.tokens * self.config.d_model

    @property
    def keys(self) -> int:
        """Bytes of one layer's keys, or of its values."""
        return self.tokens * self.config.sizes["k"] * self.config.d_head

    def arrays(self) -> Iterator[tuple[str, Spec, int]]:
        """Each parameter's name, Spec and bytes."""
        tree = specs(self.config)
        for path, spec in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_spec):
            yield path_name(path), spec, BYTES * math.prod(spec.shape)

    def norm_bytes(self, letters: str) -> int:
        """One sum of squares for every array with one of these axes."""
        cut = [name for name, spec, _ in self.arrays() if set(letters) & set(spec.axes)]
        return NORMS * BYTES * len(cut)

    def gradient(self, name: str, spec: Spec, size: int) -> int:
        """Bytes that are summed of an array's gradient: only rows that were looked up, and once for each reader."""
        if name == "W_pos":
            return size * self.context // spec.shape[0]
        return size * (2 if name == "W_E" and self.config.tied and not self.joined else 1)


def predicted(split: Split, devices: int, step: Step) -> list[Collective]:
    """What a step sends, by theory; nothing is recomputed (`Compute(remat="none")`).

    data: each device has the whole model, and the gradient of its sequences: one all-reduce of all gradients. Two
    more numbers are the loss and how many targets count.

    fsdp: the same gradient, a reduce-scatter, for each device updates its part alone. An array is gathered
    when the forward pass reads it, and, if the backward pass does too, for it again: matrices and norms' weights,
    but not biases. Embedding, unembedding and the rows of positions that are used lie outside the loop of layers:
    what the forward pass has gathered is kept. Norms of gradients take a number for each array that is in parts.

    tensor: for each layer two all-reduces of the stream in the forward pass, and two in the backward pass. A
    vocabulary in parts adds one for the embedding, one for the unembedding's backward pass, and for each
    token the largest logit, the sum of all exponentials, and the target's logit.

    sequence: all keys and values are gathered, their gradients summed and scattered; parameters are as under data,
    but the biases of keys and values, and the keys' norm, have whole gradients by then.

    That is so where the gradients of what has several readers are `joined`. XLA for CPU sums each over the devices
    and then adds them: a tied embedding's two, and under tensor those of queries, keys, values and of each matrix
    that an MLP reads with, three and one or two in the place of one and one.

    Numbers are of 4 bytes. What a few integers take, as where targets begin in the next part, is left out.

    Source: data and fsdp: Rajbhandari et al. 2020, "ZeRO", §7; tensor: Shoeybi et al. 2019, "Megatron-LM", §3;
    sequence: Grattafiori et al. 2024, "The Llama 3 Herd of Models", §3.3.2.

    Args:
        split: what is in parts.
        devices: how many parts; the payload does not depend on it.
        step: sizes.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=6)
    >>> [each.payload_bytes for each in predicted("tensor", 2, Step(config, batch=1, context=3))]
    [96, 12, 96, 96, 64]
    """
    if devices == 1:
        return []
    return [
        Collective(kind, size, devices, times)
        for kind, size, times in PREDICTIONS[split](step)
        if size * times
    ]


Sent = Iterator[tuple[Kind, int, int]]


def _data(step: Step) -> Sent:
    yield "all-reduce", 2 * BYTES, 1
    for array in step.arrays():
        yield "all-reduce", step.gradient(*array), 1


def _fsdp(step: Step) -> Sent:
    yield "all-reduce", 2 * BYTES + step.norm_bytes("d"), 1
    for name, spec, size in step.arrays():
        if "d" not in spec.axes:
            yield "all-reduce", step.gradient(name, spec, size), 1
            continue
        yield "reduce-scatter", step.gradient(name, spec, size), 1
        bias, outside = name.split(".")[-1].startswith("b"), name.startswith("W_")
        rows = size * step.context // spec.shape[0] if name == "W_pos" else size
        yield "all-gather", rows, 1 if bias or outside else 2


def _tensor(step: Step) -> Sent:
    config = step.config
    mlp = config.d_mlp > 0
    readers = (1, 1) if step.joined else (3, 1 + config.gated)
    yield "all-reduce", step.stream, 2  # embedding, and unembedding's backward pass
    yield "all-reduce", step.tokens, 3
    yield "all-reduce", step.stream, config.n_layers * (1 + mlp)
    yield "all-reduce", step.stream, config.n_layers * (readers[0] + mlp * readers[1])
    if config.qk_norm == "all":  # mean squares over heads in parts: forward, again, and backward
        yield "all-reduce", step.tokens, 6 * config.n_layers
    yield "all-reduce", step.norm_bytes("nkfv"), 1
    for _, spec, size in step.arrays():
        if "h" in spec.axes and not {"n", "k"} & set(spec.axes):  # one norm of all heads
            yield "all-reduce", size, 1


def _sequence(step: Step) -> Sent:
    yield "all-gather", 2 * step.keys, step.config.n_layers
    yield "reduce-scatter", 2 * step.keys, step.config.n_layers
    yield "all-reduce", 2 * BYTES, 1
    for name, spec, size in step.arrays():
        if not name.endswith(("b_K", "b_V", "norm_K")):
            yield "all-reduce", size if name == "W_pos" else step.gradient(name, spec, size), 1


PREDICTIONS: dict[Split, Callable[[Step], Sent]] = {
    "data": _data,
    "fsdp": _fsdp,
    "tensor": _tensor,
    "sequence": _sequence,
}
