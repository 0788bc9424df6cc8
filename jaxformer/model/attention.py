"""Attention: the only place where information moves between positions.

A layer is the sum of its heads. A head is four linear functions on a subspace of the stream: Q asks,
K is asked, V says, O writes. A token's new reading is the average of what earlier tokens (and itself)
say, weighted by how well their keys answer its query.
"""

from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.model.cache import Past, recall, remember, row_positions
from jaxformer.model.kernels import KERNELS, by_head, visible
from jaxformer.model.norm import normalize_heads
from jaxformer.model.params import Attention
from jaxformer.model.position import rotary, rotary_frequencies
from jaxformer.model.stream import biased, pick, product, query, widened
from jaxformer.model.tap import Tap


def attend(
    attention: Attention,
    config: Config,
    state: Float[Array, "t d"],
    positions: Int[Array, " t"],
    past: Past | None,
    *,
    layer: Int[Array, ""],
    tap: Tap,
    compute: Compute,
    at: Int[Array, " r"] | None = None,
) -> tuple[Float[Array, "r d"], Past | None]:
    """One layer's update of each state, and the past with this call's keys and values in it.

    With `at`, only the states at these places ask, and get an update; all are asked. `layer` is the number of
    this one, for what a Config has differ from layer to layer.

    Source: Vaswani et al. 2017, §3.2; grouped queries: Ainslie et al. 2023, "GQA", §2.2.
    """
    asks, ours = (state, positions) if at is None else (pick(state, at), positions[at])
    q, k, v = (
        tap(site, biased(query(reads, W), b).astype(state.dtype))
        for site, reads, W, b in (
            ("q", asks, attention.W_Q, attention.b_Q),
            ("k", state, attention.W_K, attention.b_K),
            ("v", state, attention.W_V, attention.b_V),
        )
    )
    q = normalize_heads(q, attention.norm_Q, config)
    k = normalize_heads(k, attention.norm_K, config)
    if config.rotary_width:
        frequencies = rotary_frequencies(config, layer)
        q = tap("rot_q", rotary(ours, q, frequencies))
        k = tap("rot_k", rotary(positions, k, frequencies))
    if config.scale_by_depth:
        q = q / (1 + layer).astype(q.dtype)
    q, k, v = by_head(q), by_head(k), by_head(v)
    theirs = positions
    if past is not None and len(positions):
        past = remember(past, config, k, v, positions[0])
        k, v = recall(past.k, q.dtype), recall(past.v, q.dtype)
        theirs = row_positions(config, k.shape[1], positions[-1])
    mix = KERNELS[compute.kernel]
    aligned = past is None and at is None
    z = mix(config, q, k, v, visible(config, layer, ours, theirs), tap, aligned=aligned)
    return write_heads(tap("z", by_head(z)), attention, tap), past


def write_heads(z: Float[Array, "t n h"], attention: Attention, tap: Tap) -> Float[Array, "t d"]:
    """The sum of what the heads write. Each head's own part is formed only where it is asked for."""
    each = product("nth,nhd->ntd", by_head(z), attention.W_O).astype(z.dtype)
    own = each.transpose(1, 0, 2)
    shown = tap("head_out", own)
    unchanged = shown is own  # then, unless captured, it has no reader and is never computed
    (t, n, h), d = z.shape, attention.W_O.shape[-1]
    whole = product("ti,id->td", z.reshape(t, n * h), attention.W_O.reshape(n * h, d))
    written = whole if unchanged else widened(shown).sum(axis=1)
    return biased(written, attention.b_O).astype(z.dtype)
