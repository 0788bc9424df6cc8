"""Edge attribution patching: which component's message to which reader matters, to first order."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.interp.attribution import Gradients, along_line, check_pair, difference, gradients
from jaxformer.interp.metric import Metric
from jaxformer.model.attention import write_heads
from jaxformer.model.norm import normalize
from jaxformer.model.params import Block, Norm, Params, stacked
from jaxformer.model.sites import Edit, keep
from jaxformer.model.stream import product
from jaxformer.model.tap import Tap
from jaxformer.model.transformer import forward


class Node(NamedTuple):
    """One end of an edge: a sender's site is where it writes, a receiver's where its reading arrives."""

    site: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        """For the label of a row or a column, such as L1H0.q or L0.mlp_out."""
        head = "" if self.head is None else f"H{self.head}"
        return self.site if self.layer is None else f"L{self.layer}{head}.{self.site}"


def senders(config: Config) -> tuple[Node, ...]:
    """What writes to the stream, in order: the embedding, then each layer's heads and its MLP.

    Biases and the position embedding are no senders: they are the same in both runs and send no difference.

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
    """What reads the stream, in order: each layer's q, k and v, head by head, then its MLP; last the unembedding.

    A query or key arrives before its norm, where there is a qk_norm; one of all heads together is then on the
    way from each of them. The heads of k and v are key/value heads. The MLP's node is pre; both readings of a gated
    one are in it.

    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, n_kv_heads=1)
    >>> [str(node) for node in receivers(config)]
    ['L0H0.q', 'L0H1.q', 'L0H0.k', 'L0H0.v', 'L0.pre', 'final']
    """
    nodes = []
    for layer in range(config.n_layers):
        for site, axis in (("q", "n"), ("k", "k"), ("v", "k")):
            nodes += [Node(site, layer, head) for head in range(config.sizes[axis])]
        nodes += [Node("pre", layer)] if config.d_mlp else []
    return (*nodes, Node("final"))


def edge_mask(config: Config) -> Bool[np.ndarray, "senders receivers"]:
    """Where there is an edge: the sender has written when the receiver reads.

    A layer's MLP reads what its heads have written, except in a parallel block, where both read the same stream.

    >>> config = Config(n_layers=1, d_model=8, n_heads=1, d_head=4, d_mlp=32, n_vocab=5)
    >>> edge_mask(config).astype(int)  # rows embed, head, MLP; columns q, k, v, MLP, unembedding
    array([[1, 1, 1, 1, 1],
           [0, 0, 0, 1, 1],
           [0, 0, 0, 0, 1]])
    """
    late = 0 if config.parallel else 1
    written = {"embed": 0, "head_out": 1, "mlp_out": 2}
    read = {"q": 0, "k": 0, "v": 0, "pre": late, "final": 2 * config.n_layers}
    sent = np.array([2 * (node.layer or 0) + written[node.site] for node in senders(config)])
    reads = np.array([2 * (node.layer or 0) + read[node.site] for node in receivers(config)])
    return sent[:, None] <= reads


def edge_attribution(
    params: Params,
    config: Config,
    clean: Int[Array, " t"],
    corrupted: Int[Array, "_"],  # as many, which check_pair says in a sentence
    metric: Metric,
    *,
    steps: int = 1,
    read: Int[Array, " r"] | None = None,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, "senders receivers"]:
    """What patching one sender's clean value into one receiver's input would do to the metric, to first order.

    Σ_td (clean - corrupted output of the sender) · (derivative of the metric by the receiver's input). The input
    is the stream before the receiver's norm, and its derivative goes through that norm at the corrupted run: a
    change that the norm undoes, such as a longer stream, counts for nothing. Every edge comes from two passes
    forward and one back: since writing is adding, an input is moved equally by whatever sender. Where a norm follows
    attention (`Config.norm_place`), a head's output is also taken through that norm's derivative.

    A row per sender and a column per receiver, in the order of `senders` and `receivers`; 0 where `edge_mask` knows
    no edge, so that columns sum (`path_patch`, whose numbers do not, has NaN there). The column of a receiver sums to
    what its whole input's change would do; with a norm after attention, to that but for what is of second order.
    There is no `edit`: a receiver's own input is not a place in the pass, and an edit at its norm or its q would be
    left out.

    Args:
        params: as `init` gives them, with stacked layers.
        clean: the tokens whose messages are patched in; `jax.vmap` over both gives a batch.
        corrupted: as many tokens, into whose run they are patched.
        metric: as in `gradients`.
        steps: as in `attribution_patch`; each step sees norms as they are at its own point of the line.
        read: as in `forward`.

    Raises:
        ValueError: as `attribution_patch`.

    Source: Syed, Rager & Conmy 2023, "Attribution Patching Outperforms Automated Circuit Discovery", §3;
    steps: Hanna, Pezzelle & Belinkov 2024, "Have Faith in Faithfulness", §3.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> scores = edge_attribution(params, config, jnp.array([3, 1, 4]), jnp.array([2, 1, 4]),
    ...                           lambda logits: logits[-1, 2])
    >>> scores.shape == (len(senders(config)), len(receivers(config)))
    True
    """
    clean, corrupted = jnp.asarray(clean), jnp.asarray(corrupted)
    check_pair(clean, corrupted, steps)
    stacked(params, config)
    dtype = jnp.dtype(compute.dtype or params.W_E.dtype)
    stored = params
    params = jax.tree.map(lambda array: array.astype(dtype), params)
    written = ("embed", "z", "mlp_out") if config.d_mlp else ("embed", "z")

    def captured(tokens: Int[Array, " t"]) -> dict[str, Array]:
        return forward(stored, config, tokens, capture=written, compute=compute).activations

    def sent(base: dict[str, Array]) -> Float[Array, "senders t d"]:
        base = {site: base[site] for site in written}
        return _sent(params, config, difference(clean, corrupted, captured(clean), base))

    def run(edit: Edit, sites: tuple[str, ...]) -> Gradients:
        options: Any = {"edit": edit, "read": read, "compute": compute}
        return gradients(stored, config, corrupted, metric, sites, **options)

    if steps == 1:
        _, values, slopes = run(keep, (*written, *_watched(config)))
        every = _meet(params, config, _normed(params, config, sent(values), values), values, slopes)
    else:
        fixed = sent(captured(corrupted))

        def part(edit: Edit) -> Float[Array, "senders receivers"]:
            _, values, slopes = run(edit, _watched(config))
            return _meet(params, config, _normed(params, config, fixed, values), values, slopes)

        every = along_line(params, config, clean, corrupted, steps, keep, part)
    return jnp.where(edge_mask(config), every, jnp.zeros_like(every))


def _watched(config: Config) -> tuple[str, ...]:
    """The streams that are read, and the sites at which the readings arrive."""
    mlp = ("pre",) if config.d_mlp else ()
    mlp += ("pre_linear",) if config.gated else ()
    mlp += ("resid_mid",) if config.d_mlp and not config.parallel else ()
    normed = ("z",) if config.norms("after") else ()
    return ("embed", "resid_pre", "q", "k", "v", *normed, *mlp, "resid_post")


def _sent(params: Params, config: Config, moved: dict[str, Array]) -> Float[Array, "senders t d"]:
    """The difference that each sender writes, in the order of `senders`; a head's before a norm on what it writes."""
    embed = moved["embed"]
    each = product("ltnh,lnhd->lntd", moved["z"], params.blocks.attn.W_O).astype(embed.dtype)
    if config.d_mlp:
        each = jnp.concatenate([each, moved["mlp_out"][:, None]], axis=1)
    return jnp.concatenate([embed[None], each.reshape(-1, *embed.shape)])


def _normed(
    params: Params, config: Config, sent: Float[Array, "senders t d"], values: dict[str, Array]
) -> Float[Array, "senders t d"]:
    """The same as it reaches the stream: heads' differences through the derivative of the norm on what they write."""
    if params.blocks.attn_post_norm is None or not config.n_layers:
        return sent
    embed, (_, t, d) = sent[:1], sent.shape
    each = sent[1:].reshape(config.n_layers, -1, t, d)
    heads, rest = each[:, : config.n_heads], each[:, config.n_heads :]

    def layer(own: tuple[Block, Array, Array]) -> Float[Array, "n t d"]:
        block, z, moved = own
        whole = write_heads(z, block.attn, Tap())

        def normed(state: Float[Array, "t d"]) -> Float[Array, "t d"]:
            return normalize(block.attn_post_norm, config, state, Tap(), "attn_post_scale")

        return jax.vmap(lambda change: jax.jvp(normed, (whole,), (change,))[1])(moved)

    heads = jax.lax.map(layer, (params.blocks, values["z"], heads.astype(values["z"].dtype)))
    return jnp.concatenate([embed, jnp.concatenate([heads, rest], axis=1).reshape(-1, t, d)])


def _meet(
    params: Params,
    config: Config,
    sent: Float[Array, "senders t d"],
    values: dict[str, Array],
    slopes: dict[str, Array],
) -> Float[Array, "senders receivers"]:
    """Every sender's difference times every receiver's derivative, one layer of receivers at a time."""
    last = slopes["resid_post"][-1] if config.n_layers else slopes["embed"]
    final = product("utd,td->u", sent, last)[:, None]
    if not config.n_layers:
        return final

    def layer(
        own: tuple[Block, dict[str, Array], dict[str, Array]],
    ) -> Float[Array, "senders receivers"]:
        return product("utd,rtd->ur", sent, _inputs(config, *own))

    each = jax.lax.map(layer, (params.blocks, _layered(values), _layered(slopes)))
    return jnp.concatenate([each.transpose(1, 0, 2).reshape(len(sent), -1), final], axis=1)


def _layered(values: dict[str, Array]) -> dict[str, Array]:
    return {site: value for site, value in values.items() if site != "embed"}


def _inputs(
    config: Config, block: Block, values: dict[str, Array], slopes: dict[str, Array]
) -> Float[Array, "receivers t d"]:
    """The metric's derivative by the input of each of one layer's receivers, as if each read a stream of its own."""
    weights = (block.attn.W_Q, block.attn.W_K, block.attn.W_V)
    read = [
        product("tnh,dnh->ntd", slopes[site], W)
        for site, W in zip(("q", "k", "v"), weights, strict=True)
    ]
    stream = values["resid_pre"]
    back = _through(block.attn_norm, config, stream)
    inputs = jax.vmap(back)(jnp.concatenate(read).astype(stream.dtype))
    if block.mlp is None:
        return inputs
    # A gated neuron's nonlinear reading, which is shown as pre, is its gate's.
    gate = block.mlp.W_in if block.mlp.W_gate is None else block.mlp.W_gate
    read = product("tf,df->td", slopes["pre"], gate)
    if block.mlp.W_gate is not None:
        read += product("tf,df->td", slopes["pre_linear"], block.mlp.W_in)
    stream = values["resid_pre" if config.parallel else "resid_mid"]
    back = _through(block.mlp_norm, config, stream)
    return jnp.concatenate([inputs, back(read.astype(stream.dtype))[None]])


def _through(
    norm: Norm | None, config: Config, stream: Float[Array, "t d"]
) -> Callable[[Float[Array, "t d"]], Float[Array, "t d"]]:
    """Takes a derivative by a norm's output to one by the stream that it reads."""
    _, back = jax.vjp(lambda state: normalize(norm, config, state, Tap(), "attn_scale"), stream)
    return lambda slope: back(slope)[0]
