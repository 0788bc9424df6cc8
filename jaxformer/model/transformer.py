"""The whole model: embed the tokens, let each block update the stream, unembed the states."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.model.attention import attend
from jaxformer.model.cache import Cache, Past, capacity, endless
from jaxformer.model.checks import check_read, check_tokens
from jaxformer.model.mlp import feed_forward
from jaxformer.model.norm import normalize
from jaxformer.model.params import Block, Params, check_params
from jaxformer.model.position import position_embedding
from jaxformer.model.remat import check_saved, rematerialised
from jaxformer.model.sites import Edit, keep
from jaxformer.model.stream import biased, capped, pick, product, query, update
from jaxformer.model.tap import Tap, check_capture, check_edit


class Output(NamedTuple):
    """Logits per position read; the sites asked for, layers stacked in front; the cache, if one was given."""

    logits: Float[Array, "r v"]
    activations: dict[str, Array]
    cache: Cache | None


def forward(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    cache: Cache | None = None,
    *,
    capture: Iterable[str] = (),
    edit: Edit = keep,
    read: Int[Array, " r"] | None = None,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Output:
    """The model on one sequence; `jax.vmap` gives it a batch.

    Args:
        tokens: ids below n_vocab. Inside traced code any other id makes the whole sequence NaN.
        cache: the tokens before these; theirs are then added to the one returned. More tokens than it
            has room for give NaN.
        capture: names of the sites to return.
        edit: `edit(site, layer, value) -> value`, called at every site while tracing.
        read: the places along t whose states are unembedded, -1 being the last; None: all. The sites
            final_scale, final and logits have no others. Inside traced code a place outside gives NaN.

    Raises:
        ValueError: tokens that are not one sequence of ids of this vocabulary, a sequence longer than
            the position table or the cache, parameters of another architecture, a site that this model
            does not show, an edit that returns another shape, a place to read at that is not there.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jax.jit(forward, static_argnames="capture")(
    ...     params, config, jnp.array([3, 1, 4]), capture=("pattern",))
    >>> out.logits.shape, out.activations["pattern"].shape
    ((3, 5), (2, 2, 3, 3))
    """
    capture = capture if isinstance(capture, str) else tuple(capture)
    check_capture(capture, config, compute)
    check_edit(edit, config, compute)
    check_saved(config, compute)
    tokens = jnp.asarray(tokens)
    check_params(params, config)
    check_tokens(tokens, params, config, cache)
    dtype = jnp.dtype(compute.dtype or params.W_E.dtype)
    params = jax.tree.map(lambda array: jnp.asarray(array).astype(dtype), params)

    start = jnp.zeros((), jnp.int32) if cache is None else cache.length.astype(jnp.int32)
    positions = start + jnp.arange(len(tokens), dtype=jnp.int32)
    whole = Tap(capture, edit)
    state = embed(params, config, tokens, positions, whole)
    if cache is not None and not endless(config, capacity(cache), len(tokens)):
        # Past its end a cache would overwrite older rows: NaN instead.
        state = jnp.where(start + len(tokens) <= capacity(cache), state, jnp.nan)
    new_tap = partial(Tap, capture, edit, saved=compute.saved)
    state, captured, past = _blocks(
        params.blocks, config, state, positions, cache, new_tap, compute
    )
    if read is not None:
        state = pick(state, check_read(read, len(state)))
    logits = unembed(params, config, state, whole)
    if cache is not None:
        cache = Cache(past.k, past.v, cache.length + len(tokens))
    return Output(logits, whole.captured | captured, cache)


def embed(
    params: Params, config: Config, tokens: Int[Array, " t"], positions: Int[Array, " t"], tap: Tap
) -> Float[Array, "t d"]:
    """Each token's first state: its row of the embedding, and what its position adds."""
    if tokens.dtype.itemsize > 4:  # indexing would take it modulo 2³²
        tokens = jnp.where((tokens >= 0) & (tokens < len(params.W_E)), tokens, -1)
    rows = params.W_E.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    if config.embedding_scale != 1.0:
        rows = rows * jnp.asarray(config.embedding_scale, rows.dtype)
    state = tap("embed", rows)
    added = position_embedding(params.W_pos, config, positions)
    return state if added is None else update(state, tap("pos_embed", added.astype(state.dtype)))


def block(
    block: Block,
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
    """One residual block, the number `layer`: an attention layer's update of the stream, then an MLP layer's.

    In a parallel block both read the state as it came in (GPT-J; Black et al. 2022, "GPT-NeoX-20B", §2.1).
    With `at`, only the states at these places ask, and go on.
    """
    before = tap("resid_pre", state)
    normed = normalize(block.attn_norm, config, before, tap, "attn_scale")
    attended, past = attend(
        block.attn, config, normed, positions, past, layer=layer, tap=tap, compute=compute, at=at
    )
    attended = normalize(block.attn_post_norm, config, attended, tap, "attn_post_scale")
    before = before if at is None else pick(before, at)
    state = update(before, tap("attn_out", attended))
    if block.mlp is not None:
        read = before if config.parallel else (state := tap("resid_mid", state))
        normed = normalize(block.mlp_norm, config, read, tap, "mlp_scale")
        written = feed_forward(block.mlp, config, normed, tap)
        written = normalize(block.mlp_post_norm, config, written, tap, "mlp_post_scale")
        state = update(state, tap("mlp_out", written))
    return tap("resid_post", state), past


def unembed(
    params: Params, config: Config, state: Float[Array, "t d"], tap: Tap
) -> Float[Array, "t v"]:
    """One query per vocabulary entry, in float32 or wider."""
    final = tap("final", normalize(params.final_norm, config, state, tap, "final_scale"))
    return tap("logits", logits_of(params, config, final))


def logits_of(params: Params, config: Config, final: Float[Array, "t d"]) -> Float[Array, "t v"]:
    """The logits of final states, of the vocabulary entries that W_U (or a tied W_E) and b_U hold."""
    logits = (
        product("td,vd->tv", final, params.W_E) if params.W_U is None else query(final, params.W_U)
    )
    return capped(biased(logits, params.b_U), config.logit_cap)


def _blocks(
    blocks: Any,
    config: Config,
    state: Float[Array, "t d"],
    positions: Int[Array, " t"],
    cache: Cache | None,
    new_tap: Callable[[Int[Array, ""]], Tap],
    compute: Compute,
) -> tuple[Float[Array, "t d"], dict[str, Array], Any]:
    """All blocks in turn: stacked, as one loop, whose compile time does not grow with depth; or written out."""

    def step(state: Array, layer: tuple[Array, Block, Past | None]) -> tuple[Array, Any]:
        index, params, past = layer
        tap = new_tap(index)
        state, past = block(
            params, config, state, positions, past, layer=index, tap=tap, compute=compute
        )
        return state, (tap.captured, past)

    step = rematerialised(step, config, compute, listed=isinstance(blocks, list))
    indices = jnp.arange(config.n_layers, dtype=jnp.int32)
    past = None if cache is None else Past(cache.k, cache.v)
    if not isinstance(blocks, list):
        state, (captured, past) = jax.lax.scan(
            step, state, (indices, blocks, past), unroll=compute.unroll
        )
        return state, captured, past
    pasts = (
        [None] * len(blocks)
        if past is None
        else [Past(*layer) for layer in zip(*past, strict=True)]
    )
    captures = []
    for i, params in enumerate(blocks):
        state, (captured, pasts[i]) = step(state, (indices[i], params, pasts[i]))
        captures.append(captured)
    captured = jax.tree.map(lambda *values: jnp.stack(values), *captures)
    return state, captured, None if past is None else Past(*map(list, zip(*pasts, strict=True)))
