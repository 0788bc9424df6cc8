"""The whole model: embed the tokens, let each block update the stream, unembed the states."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxformer import spec
from jaxformer.attention import Attention, Past, attend, attention_spec
from jaxformer.config import Compute, Config
from jaxformer.mlp import MLP, feed_forward, mlp_spec
from jaxformer.norm import Norm, norm_spec, normalize
from jaxformer.position import position_embedding, position_spec
from jaxformer.sites import Edit, Tap, check_capture, keep
from jaxformer.stream import query, update


class Block(NamedTuple):
    """The parameters of all residual blocks, stacked; of one, where a function says so."""

    attn_norm: Norm | None
    attn: Attention
    mlp_norm: Norm | None
    mlp: MLP | None


class Params(NamedTuple):
    """A model's parameters. An array that the model does not have is None: the tree is the architecture."""

    W_E: Float[Array, "v d"]
    W_pos: Float[Array, "c d"] | None
    blocks: Block
    final_norm: Norm | None
    W_U: Float[Array, "d v"] | None


class Cache(NamedTuple):
    """What attention needs of the tokens seen so far: their keys and values, and their number."""

    k: Float[Array, "l s k h"]
    v: Float[Array, "l s k h"]
    length: Int[Array, ""]


class Output(NamedTuple):
    """Logits per position; the sites asked for, layers stacked in front; the cache, if one was given."""

    logits: Float[Array, "t v"]
    activations: dict[str, Array]
    cache: Cache | None


def specs(config: Config) -> Params:
    """The declaration of every parameter: Params with a `Spec` in the place of each array.

    A tied embedding is also a reader, and drawn as one.
    """
    embedding_std = config.d_model**-0.5 if config.tied else 1.0
    return Params(
        W_E=spec.table(config, "v d", embedding_std),
        W_pos=position_spec(config, embedding_std),
        blocks=Block(
            attn_norm=norm_spec(config, "l d"),
            attn=attention_spec(config),
            mlp_norm=norm_spec(config, "l d") if config.d_mlp else None,
            mlp=mlp_spec(config),
        ),
        final_norm=norm_spec(config, "d"),
        W_U=None if config.tied else spec.matrix(config, "d v", reads="d"),
    )


def init(config: Config, key: Key[Array, ""], dtype: Any = jnp.float32) -> Params:
    """Fresh parameters, by the variance-preserving rule of `jaxformer.spec`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> init(config, jax.random.key(0)).blocks.attn.W_Q.shape
    (2, 8, 2, 4)
    """
    return spec.draw(specs(config), key, dtype)


def abstract(config: Config, dtype: Any = jnp.float32) -> Params:
    """The parameters' shapes and dtypes, with nothing allocated."""
    return spec.shapes(specs(config), dtype)


def partition(config: Config, rules: Mapping[str, str | None]) -> Params:
    """How to lay the parameters on a mesh: rules map an axis letter to a mesh axis.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> partition(config, {"n": "tensor"}).blocks.attn.W_Q
    P(None, None, 'tensor', None)
    """
    letters: set[str] = set(config.sizes)
    if unknown := sorted(rules.keys() - letters):
        raise ValueError(f"no axis {unknown[0]!r}; the axes are {', '.join(sorted(letters))}")
    return spec.shardings(specs(config), rules)


def count(config: Config) -> int:
    """The number of parameters.

    >>> count(Config(n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512, n_vocab=65))
    803072
    """
    return spec.size(specs(config))


def empty_cache(config: Config, capacity: int, dtype: Any = jnp.float32) -> Cache:
    """A cache with room for `capacity` tokens and none in it.

    Raises:
        ValueError: a capacity below 1.
    """
    if capacity < 1:
        raise ValueError(f"capacity={capacity} must be at least 1")
    sizes = config.sizes
    shape = (sizes["l"], capacity, sizes["k"], sizes["h"])
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))


def forward(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    cache: Cache | None = None,
    *,
    capture: Iterable[str] = (),
    edit: Edit = keep,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Output:
    """The model on one sequence; `jax.vmap` gives it a batch.

    Args:
        params: as `init` gives them.
        config: their architecture.
        tokens: ids below n_vocab. Inside traced code any other id makes the whole sequence NaN.
        cache: the tokens before these; theirs are then added to the one returned. More tokens than it
            has room for give NaN.
        capture: names of the sites to return.
        edit: `edit(site, layer, value) -> value`, called at every site while tracing.
        compute: how to run it.

    Raises:
        ValueError: tokens that are not one sequence of ids of this vocabulary, a sequence longer than
            the position table or the cache, parameters of another architecture, a site that this model
            does not show, an edit that returns another shape.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = init(config, jax.random.key(0))
    >>> out = jax.jit(forward, static_argnames="capture")(
    ...     params, config, jnp.array([3, 1, 4]), capture=("pattern",))
    >>> out.logits.shape, out.activations["pattern"].shape
    ((3, 5), (2, 2, 3, 3))
    """
    capture = capture if isinstance(capture, str) else tuple(capture)
    check_capture(capture, config, compute)
    tokens = jnp.asarray(tokens)
    check_params(params, config)
    _check_tokens(tokens, config, cache)
    dtype = jnp.dtype(compute.dtype or params.W_E.dtype)
    params = jax.tree.map(lambda array: jnp.asarray(array).astype(dtype), params)

    start = jnp.zeros((), jnp.int32) if cache is None else cache.length
    positions = start + jnp.arange(len(tokens), dtype=jnp.int32)
    whole = Tap(capture, edit)
    state = embed(params, config, tokens, positions, whole)
    if cache is not None:  # past its end a cache would overwrite older rows: NaN instead
        state = jnp.where(start + len(tokens) <= cache.k.shape[1], state, jnp.nan)
    state, captured, past = _blocks(
        params.blocks, config, state, positions, cache, partial(Tap, capture, edit), compute
    )
    logits = unembed(params, config, state, whole)
    if cache is not None:
        cache = Cache(past.k, past.v, start + len(tokens))
    return Output(logits, whole.captured | captured, cache)


def embed(
    params: Params, config: Config, tokens: Int[Array, " t"], positions: Int[Array, " t"], tap: Tap
) -> Float[Array, "t d"]:
    """Each token's first state: its row of the embedding, and what its position adds."""
    rows = params.W_E.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
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
    tap: Tap,
    compute: Compute,
) -> tuple[Float[Array, "t d"], Past | None]:
    """One residual block: an attention layer's update of the stream, then an MLP layer's.

    In a parallel block both read the state as it came in (GPT-J; Black et al. 2022, "GPT-NeoX-20B", §2.1).
    """
    before = tap("resid_pre", state)
    normed = normalize(block.attn_norm, config, before, tap, "attn_scale")
    attended, past = attend(block.attn, config, normed, positions, past, tap=tap, compute=compute)
    state = update(before, tap("attn_out", attended))
    if block.mlp is not None:
        read = before if config.parallel else (state := tap("resid_mid", state))
        normed = normalize(block.mlp_norm, config, read, tap, "mlp_scale")
        state = update(state, tap("mlp_out", feed_forward(block.mlp, config, normed, tap)))
    return tap("resid_post", state), past


def unembed(
    params: Params, config: Config, state: Float[Array, "t d"], tap: Tap
) -> Float[Array, "t v"]:
    """One query per vocabulary entry, in float32 or wider."""
    final = tap("final", normalize(params.final_norm, config, state, tap, "final_scale"))
    directions = params.W_E.T if params.W_U is None else params.W_U
    return tap("logits", query(final, directions))


def _blocks(
    blocks: Block,
    config: Config,
    state: Float[Array, "t d"],
    positions: Int[Array, " t"],
    cache: Cache | None,
    new_tap: Callable[[Int[Array, ""]], Tap],
    compute: Compute,
) -> tuple[Float[Array, "t d"], dict[str, Array], Any]:
    """All blocks in turn, as one loop over the layer axis: compile time does not grow with depth."""

    def step(state: Array, layer: tuple[Array, Block, Past | None]) -> tuple[Array, Any]:
        index, params, past = layer
        tap = new_tap(index)
        state, past = block(params, config, state, positions, past, tap=tap, compute=compute)
        return state, (tap.captured, past)

    past = None if cache is None else Past(cache.k, cache.v)
    layers = (jnp.arange(config.n_layers, dtype=jnp.int32), blocks, past)
    remat = REMATS[compute.remat]
    state, (captured, past) = jax.lax.scan(remat(step), state, layers, unroll=compute.unroll)
    return state, captured, past


REMATS: dict[str, Callable[[Any], Any]] = {
    "none": lambda step: step,
    "block": partial(jax.checkpoint, prevent_cse=False),  # a loop's body needs no CSE barrier
    "dots": partial(
        jax.checkpoint,
        prevent_cse=False,
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    ),
}


def check_params(params: Params, config: Config) -> None:
    """Refuse parameters that are not those of this Config.

    Raises:
        ValueError: naming the first array that is missing, superfluous, of another shape or no float.
    """
    expected = jax.tree_util.tree_leaves_with_path(abstract(config))
    given = dict(jax.tree_util.tree_leaves_with_path(params))
    for path, leaf in expected:
        shape = jnp.shape(given.pop(path)) if path in given else None
        if shape != leaf.shape:
            raise ValueError(
                f"this Config has {spec.path_name(path)} of shape {leaf.shape}, the parameters have {shape}; "
                "both must come from one model"
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{spec.path_name(path)} is {leaf.dtype}; parameters are floats")
    if given:
        raise ValueError(
            f"the parameters have {spec.path_name(next(iter(given)))}, this Config does not"
        )


def _check_tokens(tokens: Array, config: Config, cache: Cache | None) -> None:
    if tokens.ndim != 1:
        raise ValueError(
            f"forward takes one sequence, not tokens of shape {tokens.shape}; "
            "for a batch: jax.vmap(forward, in_axes=(None, None, 0))"
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens are {tokens.dtype}; they must be integers, the ids of a tokenizer"
        )
    room = {
        f"the position table holds n_context={config.n_context}": config.n_context,
        "the cache has room for fewer": None if cache is None else cache.k.shape[1],
    }
    for why, longest in room.items():
        if longest is not None and len(tokens) > longest:
            raise ValueError(f"{len(tokens)} tokens are too many: {why}; give at most {longest}")
    if cache is not None:
        needed = (config.n_layers, cache.k.shape[1], config.sizes["k"], config.d_head)
        if cache.k.shape != needed or cache.v.shape != needed:
            raise ValueError(
                f"the cache holds {cache.k.shape}, this Config needs {needed}; make it by empty_cache(config, ...)"
            )
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(np.asarray(tokens), config.n_vocab)


def check_vocabulary(tokens: Any, n_vocab: int) -> None:
    """Refuse concrete tokens that are outside the vocabulary.

    Raises:
        ValueError: naming the first such token and its place.
    """
    tokens = np.asarray(tokens)
    outside = np.argwhere((tokens < 0) | (tokens >= n_vocab))
    if len(outside):
        place = tuple(int(i) for i in outside[0])
        raise ValueError(
            f"token {tokens[place]} at position {place[-1]} is outside the vocabulary of {n_vocab} entries"
        )
