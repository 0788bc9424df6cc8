"""Path patching: the effect of what one head writes on what one later head reads, and on nothing else."""

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
from jaxformer.interp.engine.climb import Runs, Sweep, show
from jaxformer.interp.engine.sweep import GIB, check_door, run
from jaxformer.interp.metric import Metric
from jaxformer.model.mlp import feed_forward
from jaxformer.model.norm import normalize
from jaxformer.model.params import Block, Params
from jaxformer.model.sites import Edit, Layer
from jaxformer.model.stream import biased, query, update, widened
from jaxformer.model.tap import Tap

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
    read: Any = None,
    memory: int = GIB,
    progress: bool | None = None,
    mesh: Mesh | None = None,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, "l n l m"]:
    """The metric of the corrupted run with one head reading what another would have written in the clean run.

    For every head (the sender) and every head of a later layer (the receiver): the sender's clean output takes the
    place of its corrupted one in the stream that the receiver's norm, and then its query, key or value, reads; no
    other reader sees it. The receiver's new vector is computed exactly, its norm anew, at all positions, and the
    rest of the model runs on from there. A norm on what a layer writes is computed anew as well; one of all heads'
    queries or keys together (qk_norm="all") comes after the receiver's new vector, and so moves the other heads'. The
    result has sender layer, sender head, receiver layer, receiver head (key/value head for k and v), and NaN where the
    receiver is in no later layer: that is no measurement.

    By default a path is the direct one, through no layer between, as TransformerLens's get_act_patch_direct_path has
    it. With `through_mlps` the MLPs between run again on what they see of the change, while the heads between go on
    as they were: then a path has no other head on it.

    Source: Wang et al. 2022, "Interpretability in the Wild", §3.1 (with MLPs); Goldowsky-Dill et al. 2023,
    "Localizing Model Behavior with Path Patching".

    Args:
        clean: as in `patch_sweep`, as is all that is not named here.
        corrupted: tokens of the run to patch.
        metric: from logits to one number.
        receiver: "q", "k" or "v".
        through_mlps: let the MLPs between pass the change on.
        read: the places whose logits the metric gets.
        memory: in bytes.
        progress: show a bar.
        mesh: devices to spread the patches over, along its axis "data".

    Raises:
        ValueError: another receiver, fewer than two layers, and all that `patch_sweep` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> path_patch(
    ...     params, config, jnp.array([3, 1, 4]), jnp.array([2, 1, 4]), lambda logits: logits[-1, 3], "k"
    ... ).shape
    (2, 2, 2, 2)
    """
    runs, function, single = check_door(params, config, clean, corrupted, metric, read)
    if receiver not in RECEIVERS:
        raise ValueError(f"receiver={receiver!r} is unknown; choose from {', '.join(RECEIVERS)}")
    if config.n_layers < 2:
        raise ValueError(
            f"a path leads to a later layer, and this model has n_layers={config.n_layers}"
        )
    senders, receivers = config.n_heads, config.sizes["n" if receiver == "q" else "k"]
    shape = (config.n_layers, senders, config.n_layers, receivers)
    every = np.indices(shape).reshape(4, -1)
    later = every[:, every[0] < every[2]].T
    later = later[np.argsort(later[:, 2], kind="stable")]
    cells = np.stack([later[:, 2], later[:, 0] * senders + later[:, 1], later[:, 3]], axis=1)
    places: Any = np.ravel_multi_index(tuple(later.T), shape)
    sweep = _Paths(config, function, single, compute, receiver, through_mlps)
    return run(
        sweep, params, runs, cells, shape, places, memory=memory, progress=progress, mesh=mesh
    )


@dataclasses.dataclass(frozen=True)
class _Paths(Sweep):
    """Its cells: the receiver's layer, the sender, the receiver's head."""

    receiver: str
    through_mlps: bool

    @property
    def recording(self) -> int:
        return self.config.n_layers * self.config.n_heads if self.through_mlps else 2

    def record(
        self, params: Params, runs: Runs
    ) -> tuple[Float[Array, "b l t d"], Float[Array, "b a s t d"]]:
        """The corrupted streams, and each sender's change of them as it stands at each layer `a`.

        The direct path's is the same at all layers: there `a` is 1.
        """
        found = show(self, params, runs.corrupted, None, "resid_pre", "head_out", "attn_out")
        clean = show(self, params, runs.clean, None, "head_out")
        change = clean["head_out"] - found["head_out"]  # [b l t n d]
        if params.blocks.attn_post_norm is not None:
            reached = jax.vmap(jax.vmap(partial(_reached, self.config)), in_axes=(None, 0, 0))
            change = reached(params.blocks, found["head_out"], change)
        b, _, t, _, d = change.shape
        change = change.transpose(0, 1, 3, 2, 4).reshape(b, -1, t, d)
        if not self.through_mlps:
            return found["resid_pre"], change[:, None]
        passed = jax.vmap(partial(_pass_on, params, self.config))
        return found["resid_pre"], passed(found["resid_pre"], found["attn_out"], change)

    def start(self, params: Params, held: Any, layer: int, cell: Int[Array, "3"]) -> Array:
        return held[0][layer]

    def edit(self, held: Any, own: Block, index: Layer, cell: Int[Array, "3"]) -> Edit:
        (streams, changes), (layer, sender, head) = held, cell
        change = changes[jnp.minimum(jnp.asarray(index), len(changes) - 1), sender]
        new = _read(own, self.config, update(streams[index], change), self.receiver)
        return patch(self.receiver, layer, {"head": head}, new)


def _reached(
    config: Config, own: Block, heads: Float[Array, "t n d"], change: Float[Array, "t n d"]
) -> Float[Array, "t n d"]:
    """What each head's change makes of the norm on its layer's sum."""
    own = jax.tree.map(lambda array: array.astype(heads.dtype), own)
    whole = biased(widened(heads).sum(axis=1), own.attn.b_O).astype(heads.dtype)

    def normed(state: Float[Array, "t d"]) -> Float[Array, "t d"]:
        return normalize(own.attn_post_norm, config, state, Tap(), "attn_post_scale")

    each = jax.vmap(lambda own: normed(update(whole, own)), in_axes=1, out_axes=1)(change)
    return each - normed(whole)[:, None]


def _pass_on(
    params: Params,
    config: Config,
    streams: Float[Array, "l t d"],
    attended: Float[Array, "l t d"],
    change: Float[Array, "s t d"],
) -> Float[Array, "l s t d"]:
    """Each sender's change as it stands before each layer, once the MLPs before that have seen it."""
    layers = jnp.arange(config.n_layers, dtype=jnp.int32)
    from_layer = jnp.repeat(layers, config.n_heads)

    def one(own: Any, state: Float[Array, "t d"], written: Float[Array, "t d"]) -> Array:
        params, attended = own
        after = update(update(state, attended), written)
        if params.mlp is None:
            return after
        seen = state if config.parallel else after
        normed = normalize(params.mlp_norm, config, seen, Tap(), "mlp_scale")
        fed = feed_forward(params.mlp, config, normed, Tap())
        return update(after, normalize(params.mlp_post_norm, config, fed, Tap(), "mlp_post_scale"))

    def turn(states: Float[Array, "s t d"], layer: Any) -> tuple[Array, Array]:
        index, params, stream, attended = layer
        written = jnp.where((from_layer == index)[:, None, None], change, 0.0)
        after = jax.vmap(partial(one, (params, attended)))(states, written)
        return after, states - stream

    dtype = streams.dtype
    blocks = jax.tree.map(lambda array: array.astype(dtype), params.blocks)
    start = jnp.broadcast_to(streams[0], change.shape)
    return jax.lax.scan(turn, start, (layers, blocks, streams, attended))[1]


def _read(
    own: Block, config: Config, stream: Float[Array, "t d"], receiver: str
) -> Float[Array, "t m h"]:
    """What all heads of a layer read of a stream as their queries, keys or values."""
    own = jax.tree.map(lambda array: array.astype(stream.dtype), own)
    normed = normalize(own.attn_norm, config, stream, Tap(), "attn_scale")
    W, b = {
        "q": (own.attn.W_Q, own.attn.b_Q),
        "k": (own.attn.W_K, own.attn.b_K),
        "v": (own.attn.W_V, own.attn.b_V),
    }[receiver]
    return biased(query(normed, W), b)
