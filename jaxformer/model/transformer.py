"""The whole model: embed the tokens, let each block update the stream, unembed the states."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxformer.config import Compute, Config
from jaxformer.model.attention import attend
from jaxformer.model.cache import Cache, LayerCache, place_tokens
from jaxformer.model.checks import Inputs, Integers, check_inputs, check_shapes
from jaxformer.model.mlp import feed_forward
from jaxformer.model.norm import normalize
from jaxformer.model.params import Block, Params
from jaxformer.model.position import ADDED, restarted
from jaxformer.model.remat import rematerialised
from jaxformer.model.stream import add_bias, query, soft_cap, take_positions, update
from jaxformer.model.tap import Tap, compiled
from jaxformer.sites import Edit, EditFunction, Layer, identity


class Output(NamedTuple):
    """What a forward pass returns: logits, the captured sites with layers stacked in front, the extended cache."""

    logits: Float[Array, "r v"]
    activations: dict[str, Array]
    cache: Cache | None


def forward(
    params: Params, config: Config, tokens: Integers, cache: Cache | None = None, *,
    capture: str | Iterable[str] = (), edit: Edit = identity, logits_at: Any = None,
    segments: Integers | None = None, compute: Compute = Compute(),
) -> Output:  # fmt: skip
    """Run the model on one sequence; `jax.vmap` runs it on a batch.

    Args:
        tokens: ids below n_vocab; padding at the end changes nothing before it. In traced code any other id gives NaN.
        cache: keys and values of earlier tokens; the output's cache has those of `tokens` too.
        capture: names of the sites to return, or "all". It is static: `jax.jit(forward, static_argnames="capture")`;
            under vmap, bind it: `jax.vmap(partial(forward, capture=("z",)), in_axes=(None, None, 0))`.
        edit: one of `jaxformer.interp.edit`, whose numbers are traced; a function `edit(site, layer, value) -> value`,
            compiled at every call; or a mapping from sites, or (site, layer), to functions of the value.
        logits_at: positions whose logits to compute, -1 being the last; None: all. The sites final_scale, final
            and logits hold only these.
        segments: a number per token; where it changes, another document begins, which sees no other and restarts
            positions.

    Raises:
        ValueError: tokens that are not one sequence of ids, or too long for the position table or the cache; parameters
            of another Config; a site that the model lacks; an edit that returns another shape, or never acts; segments
            with a cache.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, 0)
    >>> out = forward(params, config, [3, 1, 4], capture=("pattern",))
    >>> out.logits.shape, out.activations["pattern"].shape
    ((3, 5), (2, 2, 3, 3))
    """
    inputs, capture = check_inputs(
        params, config, Inputs(tokens, cache, logits_at, segments), capture, edit, compute
    )
    return compiled(run_model, edit, static=("capture",))(params, config, inputs, compute, capture=capture)  # fmt: skip


def run_model(
    edit: EditFunction, params: Params, config: Config, inputs: Inputs, compute: Compute, *,
    capture: tuple[str, ...] = (),
) -> Output:  # fmt: skip
    """Run the model inside traced code; `forward` has checked concrete arguments."""
    params, (tokens, cache, logits_at, segments) = check_shapes(params, config, inputs, compute)
    positions = None if segments is None else restarted(segments)
    if cache is not None:
        positions, tokens = place_tokens(cache, config, tokens)
    tap = Tap(capture, edit)
    state = embed(params, config, tokens, positions, tap=tap)

    def step(state: Array, given: tuple[Any, Block, Any]) -> Any:
        layer, weights, stored = given
        tap = Tap(capture, edit, layer, compute.saved)
        kept = None if stored is None else LayerCache(config, *stored)
        state = block(weights, config, state, positions, layer=layer, cache=kept, tap=tap, compute=compute)  # fmt: skip
        return state, (tap.captured, kept and (kept.k, kept.v))

    state, activations, stored = run_blocks(step, params.blocks, config, state, cache, compute)
    if cache is not None:
        cache = Cache(stored[0], stored[1], cache.length + len(tokens))
    if logits_at is not None:
        state = take_positions(state, logits_at)
    logits = unembed(params, config, state, tap=tap)
    return Output(logits, tap.captured | activations, cache)


def embed(
    params: Params, config: Config, tokens: Integer[Array, " t"], positions: Int[Array, " t"] | None = None, *,
    tap: Tap = Tap(),
) -> Float[Array, "t d"]:  # fmt: skip
    """Return each token's first state: its row of the embedding, plus a positional encoding if there is one.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> bool((embed(params, config, jnp.array([3, 1])) == params.W_E[jnp.array([3, 1])]).all())
    True
    """
    if tokens.dtype.itemsize > 4:  # indexing would wrap such a token at 2³²
        tokens = jnp.where((tokens >= 0) & (tokens < len(params.W_E)), tokens, -1)
    rows = params.W_E.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    if config.embedding_scale != 1.0:
        rows = rows * jnp.asarray(config.embedding_scale, rows.dtype)
    state = tap("embed", rows)
    if config.position in ADDED:
        positions = jnp.arange(len(tokens), dtype=jnp.int32) if positions is None else positions
        added = ADDED[config.position](params.W_pos, config, positions)
        state = update(state, tap("pos_embed", added.astype(state.dtype)))
    return state


def block(
    block: Block, config: Config, state: Float[Array, "t d"], positions: Int[Array, " t"] | None = None, *,
    layer: Layer = None, cache: LayerCache | None = None, tap: Tap = Tap(), compute: Compute = Compute(),
) -> Float[Array, "t d"]:  # fmt: skip
    """Return the stream after one residual block: an attention layer updates it, then an MLP layer.

    In a parallel block both read the stream as it came in (GPT-J; Black et al. 2022, "GPT-NeoX-20B", §2.1). Other
    arguments are as in `attend`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.unstack(jaxformer.init(config, jax.random.key(0)))
    >>> state = embed(params, config, jnp.array([3, 1, 4]))
    >>> for weights in params.blocks:
    ...     state = block(weights, config, state)
    >>> unembed(params, config, state).shape
    (3, 5)
    """
    before = tap("resid_pre", state)
    read = normalize(block.attn_norm, config, before, tap=tap, site="attn_scale")
    written = attend(
        block.attn, config, read, positions, layer=layer, cache=cache, tap=tap, compute=compute
    )
    written = normalize(block.attn_post_norm, config, written, tap=tap, site="attn_post_scale")
    state = update(before, tap("attn_out", written))
    if block.mlp is not None:
        mid = before if config.parallel else (state := tap("resid_mid", state))
        read = normalize(block.mlp_norm, config, mid, tap=tap, site="mlp_scale")
        written = feed_forward(block.mlp, config, read, tap=tap)
        written = normalize(block.mlp_post_norm, config, written, tap=tap, site="mlp_post_scale")
        state = update(state, tap("mlp_out", written))
    return tap("resid_post", state)


def unembed(
    params: Params, config: Config, state: Float[Array, "t d"], *, tap: Tap = Tap()
) -> Float[Array, "t v"]:
    """Return the logits: one query of the final state per vocabulary entry, in float32 or wider.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> unembed(jaxformer.init(config, jax.random.key(0)), config, jnp.ones((3, 8))).shape
    (3, 5)
    """
    final = tap("final", normalize(params.final_norm, config, state, tap=tap, site="final_scale"))
    return tap("logits", logits_of(params, config, final))


def logits_of(params: Params, config: Config, final: Float[Array, "t d"]) -> Float[Array, "t v"]:
    """Return the logits of final states, for the vocabulary entries that W_U (or a tied W_E) and b_U hold."""
    W_U = params.W_E.T if params.W_U is None else params.W_U
    return soft_cap(add_bias(query(final, W_U), params.b_U), config.logit_soft_cap)


def run_blocks(
    step: Callable[..., Any], blocks: Any, config: Config, state: Float[Array, "t d"], cache: Cache | None,
    compute: Compute,
) -> tuple[Float[Array, "t d"], dict[str, Array], Any]:  # fmt: skip
    """Run all blocks: stacked ones in one loop, whose compile time does not grow with depth; a list one by one."""
    stored = None if cache is None else (cache.k, cache.v)
    if compute.remat != "none":
        step = rematerialised(step, config, compute, listed=isinstance(blocks, list))
    if isinstance(blocks, list):
        return _run_list(step, state, blocks, stored)
    layers = jnp.arange(config.n_layers, dtype=jnp.int32), blocks, stored
    state, out = jax.lax.scan(step, state, layers, unroll=compute.unroll)
    return state, *out


def _run_list(
    step: Callable[..., Any], state: Array, blocks: list[Block], stored: Any
) -> tuple[Float[Array, "t d"], dict[str, Array], Any]:
    by_layer = [None] * len(blocks) if stored is None else zip(*stored, strict=True)
    captured, kept = [], []
    for inputs in zip(range(len(blocks)), blocks, by_layer, strict=True):
        state, (activations, new) = step(state, inputs)
        captured.append(activations)
        kept.append(new)
    activations = jax.tree.map(lambda *values: jnp.stack(values), *captured)
    return state, activations, stored and tuple(map(list, zip(*kept, strict=True)))
