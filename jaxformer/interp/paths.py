"""Path patching: patch the output of one head into the input of one later head only."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.interp.edit import patch
from jaxformer.interp.engine.passes import Runs, Sweep, capture
from jaxformer.interp.engine.sweep import GIB, check_runs, run
from jaxformer.interp.metric import Metric
from jaxformer.model.mlp import feed_forward
from jaxformer.model.norm import normalize
from jaxformer.model.params import Block, Params
from jaxformer.model.stream import add_bias, query, upcast, update
from jaxformer.sites import EditFunction, Layer

RECEIVERS = ("q", "k", "v")


def path_patch(
    params: Params,
    config: Config,
    clean: Int[Array, "*b t"],
    corrupted: Int[Array, "*b t"],
    metric: Metric,
    receiver: str = "q",
    *,
    through_mlps: bool = False,
    logits_at: Any = None,
    memory: int = GIB,
    progress: bool | None = None,
    mesh: Mesh | None = None,
    compute: Compute = Compute(),
) -> Float[Array, "l n l receiver"]:
    """Return the metric of the corrupted run for every pair of heads, with one receiving the other's clean output.

    For each sender (any head) and receiver (any head of a later layer): the sender's clean output replaces its
    corrupted one in the stream that the receiver reads as its query, key or value; nothing else reads that stream. The
    receiver's vector is recomputed exactly at all positions, its norm included, and the rest of the model runs with it.
    A norm after attention is recomputed too. A norm over the queries or keys of all heads (qk_norm="all") follows the
    receiver's new vector, so it also changes those of the other heads.

    The result has the axes sender layer, sender head, receiver layer and receiver head (key/value head for k and v). It
    is NaN if the receiver is not in a later layer.

    By default a path is direct, through no layer in between, as in TransformerLens's get_act_patch_direct_path. With
    `through_mlps` the MLPs in between run again with the change they read, while the heads in between keep their
    corrupted outputs: the path includes MLPs, but no other head.

    Source: Wang et al. 2022, "Interpretability in the Wild", §3.1 (with MLPs); Goldowsky-Dill et al. 2023,
    "Localizing Model Behavior with Path Patching".

    Args:
        receiver: patch what the receiver reads as its "q", "k" or "v".
        through_mlps: include paths through the MLPs in between.

    The other arguments are those of `patch_sweep`.

    Raises:
        ValueError: another receiver, fewer than two layers, and as `patch_sweep`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> path_patch(
    ...     params, config, jnp.array([3, 1, 4]), jnp.array([2, 1, 4]), lambda logits: logits[-1, 3], "k"
    ... ).shape
    (2, 2, 2, 2)
    """
    runs, function, single = check_runs(params, config, clean, corrupted, metric, logits_at)
    if receiver not in RECEIVERS:
        raise ValueError(f"receiver={receiver!r} is unknown; choose from {', '.join(RECEIVERS)}")
    if config.n_layers < 2:
        raise ValueError(
            f"n_layers={config.n_layers} has no later layer to patch; path_patch needs at least 2 layers"
        )
    senders, receivers = config.n_heads, config.sizes["n" if receiver == "q" else "k"]
    shape = (config.n_layers, senders, config.n_layers, receivers)
    pairs = np.indices(shape).reshape(4, -1)
    pairs = pairs[:, pairs[0] < pairs[2]]
    pairs = pairs[:, np.argsort(pairs[2], kind="stable")]
    layer, head, receiver_layer, receiver_head = pairs
    cells = np.stack([receiver_layer, layer * senders + head, receiver_head], axis=1)
    places: Any = np.ravel_multi_index(tuple(pairs), shape)
    sweep = _Paths(config, function, single, compute, receiver, through_mlps)
    return run(
        sweep, params, runs, cells, shape, places, memory=memory, progress=progress, mesh=mesh
    )


@dataclasses.dataclass(frozen=True)
class _Paths(Sweep):
    """A cell is the layer of the receiver, the sender (counted over all layers), and the head of the receiver."""

    receiver: str
    through_mlps: bool

    @property
    def recorded_passes(self) -> int:
        return self.config.n_layers * self.config.n_heads if self.through_mlps else 2

    def record(
        self, params: Params, runs: Runs
    ) -> tuple[Float[Array, "b l t d"], Float[Array, "b layers sender t d"]]:
        """Return the corrupted streams, and each sender's change of the stream before each layer.

        For the direct path the change is the same at all layers, and that axis has length 1.
        """
        corrupted = capture(self, params, runs.corrupted, None, "resid_pre", "head_out", "attn_out")
        clean = capture(self, params, runs.clean, None, "head_out")
        change = clean["head_out"] - corrupted["head_out"]  # [b l t n d]
        if params.blocks.attn_post_norm is not None:
            by_layer = jax.vmap(_through_post_norm, (0, None, 0, 0))
            each = jax.vmap(by_layer, (None, None, 0, 0))
            change = each(params.blocks, self.config, corrupted["head_out"], change)
        b, _, t, _, d = change.shape
        change = change.transpose(0, 1, 3, 2, 4).reshape(b, -1, t, d)
        if not self.through_mlps:
            return corrupted["resid_pre"], change[:, None]
        each = jax.vmap(partial(_through_mlps, params, self.config))
        return corrupted["resid_pre"], each(corrupted["resid_pre"], corrupted["attn_out"], change)

    def start(self, params: Params, recorded: Any, layer: int, cell: Int[Array, "3"]) -> Array:
        return recorded[0][layer]

    def edit(
        self, recorded: Any, params: Block, layer: Layer, cell: Int[Array, "3"]
    ) -> EditFunction:
        (streams, changes), (receiver_layer, sender, head) = recorded, cell
        change = changes[jnp.minimum(jnp.asarray(layer), len(changes) - 1), sender]
        new = _read(params, self.config, update(streams[layer], change), self.receiver)
        return patch(self.receiver, receiver_layer, {"head": head}, new)


def _through_post_norm(
    params: Block, config: Config, heads: Float[Array, "t n d"], change: Float[Array, "t n d"]
) -> Float[Array, "t n d"]:
    """Return how each head's change alone changes the output of the norm after attention."""
    params = jax.tree.map(lambda array: array.astype(heads.dtype), params)
    total = add_bias(upcast(heads).sum(axis=1), params.attn.b_O).astype(heads.dtype)

    def norm(state: Float[Array, "t d"]) -> Float[Array, "t d"]:
        return normalize(params.attn_post_norm, config, state)

    each = jax.vmap(lambda change: norm(update(total, change)), in_axes=1, out_axes=1)(change)
    return each - norm(total)[:, None]


def _through_mlps(
    params: Params,
    config: Config,
    streams: Float[Array, "l t d"],
    attn_out: Float[Array, "l t d"],
    change: Float[Array, "sender t d"],
) -> Float[Array, "l sender t d"]:
    """Return each sender's change of the stream before each layer, with the MLPs in between run again."""
    layers = jnp.arange(config.n_layers, dtype=jnp.int32)
    from_layer = jnp.repeat(layers, config.n_heads)

    def run_layer(
        params: Block, attn_out: Array, state: Float[Array, "t d"], change: Float[Array, "t d"]
    ) -> Float[Array, "t d"]:
        after = update(update(state, attn_out), change)
        if params.mlp is None:
            return after
        normed = normalize(params.mlp_norm, config, state if config.parallel else after)
        mlp_out = feed_forward(params.mlp, config, normed)
        return update(after, normalize(params.mlp_post_norm, config, mlp_out))

    def body(states: Float[Array, "sender t d"], inputs: Any) -> tuple[Array, Array]:
        layer, params, stream, attn_out = inputs
        own = jnp.where((from_layer == layer)[:, None, None], change, 0.0)
        after = jax.vmap(partial(run_layer, params, attn_out))(states, own)
        return after, states - stream

    blocks = jax.tree.map(lambda array: array.astype(streams.dtype), params.blocks)
    start = jnp.broadcast_to(streams[0], change.shape)
    return jax.lax.scan(body, start, (layers, blocks, streams, attn_out))[1]


def _read(
    params: Block, config: Config, stream: Float[Array, "t d"], receiver: str
) -> Float[Array, "t receiver h"]:
    """Return the queries, keys or values of all heads of a layer for a given stream."""
    params = jax.tree.map(lambda array: array.astype(stream.dtype), params)
    normed = normalize(params.attn_norm, config, stream)
    W, b = {
        "q": (params.attn.W_Q, params.attn.b_Q),
        "k": (params.attn.W_K, params.attn.b_K),
        "v": (params.attn.W_V, params.attn.b_V),
    }[receiver]
    return add_bias(query(normed, W), b)
