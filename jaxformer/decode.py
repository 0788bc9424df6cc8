"""The engine of generation: read the prompts, then draw, read, draw. Everything here is traced."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.cache import Cache, empty_cache
from jaxformer.config import Compute, Config
from jaxformer.params import Params, layers
from jaxformer.prompts import NO_TOKEN, bucket
from jaxformer.sampling import Sampling, choose
from jaxformer.sites import READ, Edit, Layer, Site, activation_axis, position_axis
from jaxformer.transformer import forward


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
    """What a program is compiled for."""

    config: Config
    edit: Edit
    capture: tuple[str, ...]
    compute: Compute


class Wish(NamedTuple):
    """What may differ from call to call of one program."""

    keys: Key[Array, " b"]
    sampling: Sampling
    stops: Int[Array, "stops m"]  # shorter ones filled up in front
    since: Int[Array, "*b"] | None  # the first position to edit


class State(NamedTuple):
    """A batch of sequences in the middle of their generation."""

    cache: Cache  # b behind the layer axis; the length only where the prompts' lengths differ
    token: Int[Array, " b"]  # the one drawn last, not yet read
    drawn: Int[Array, ""]  # how many have been drawn
    tail: Int[Array, "b m"]  # the latest of them, as many as the longest stop sequence has
    seen: Bool[Array, "b v"] | None  # which tokens occurred, where there is a repetition penalty
    done: Bool[Array, " b"]


class Drawn(NamedTuple):
    """One more token of each sequence; with `n` in front, several."""

    tokens: Int[Array, "*n b"]  # NO_TOKEN once a sequence is done, or its logits are NaN
    log_probs: Float[Array, "*n b"]  # in the model's own distribution
    activations: dict[str, Array]  # of the position whose logits gave it


class Read(NamedTuple):
    """What reading on gave: the logits behind one position of each sequence, and its activations."""

    logits: Float[Array, "b v"]
    activations: dict[str, Array]
    cache: Cache


def prefill(
    params: Params,
    how: How,
    wish: Wish,
    prompts: Int[Array, "b t"],
    lengths: Int[Array, "..."],
    *,
    room: int,
    before: State | None = None,
    earlier: Bool[Array, "b v"] | None = None,
) -> tuple[State, Drawn]:
    """Read the prompts and draw the first token behind each, with room for so many in all.

    Where `before` is given, the prompts are the end of its text, read anew: it says what was drawn so far.
    `earlier` marks tokens that occurred before the prompts, for a repetition penalty.
    """
    config = how.config
    batch, width = prompts.shape
    rows, piece = plan(config, width, room)
    one = empty_cache(config, rows, how.compute.cache or how.compute.dtype or params.W_E.dtype)
    many = jax.tree.map(
        lambda a: jnp.zeros((a.shape[0], batch, *a.shape[1:]), a.dtype), (one.k, one.v)
    )
    cache = Cache(many[0], many[1], jnp.zeros_like(lengths))
    if piece == width:
        read = read_on(params, how, wish, prompts, cache, lengths - 1)
    else:
        read = _read_in_pieces(params, how, wish, prompts, cache, lengths, piece)
    # What fills a prompt up is no part of it: the next token takes its row.
    read = read._replace(cache=read.cache._replace(length=lengths))
    if before is not None:
        return _draw(how, wish, before, read)
    seen = None
    if wish.sampling.repetition_penalty is not None:
        real = jnp.arange(width, dtype=jnp.int32) < jnp.broadcast_to(lengths, batch)[:, None]
        none = jnp.zeros(config.n_vocab, bool)
        seen = jax.vmap(lambda tokens, real: none.at[tokens].max(real))(prompts, real)
        seen = seen if earlier is None else seen | earlier
    state = State(
        cache=read.cache,
        token=prompts[:, 0],
        drawn=jnp.zeros((), jnp.int32),
        tail=jnp.full((batch, wish.stops.shape[1]), NO_TOKEN - 1, jnp.int32),
        seen=seen,
        done=jnp.zeros(batch, bool),
    )
    return _draw(how, wish, state, read)


def decode(
    params: Params,
    how: How,
    wish: Wish,
    state: State,
    limit: Int[Array, ""],
    *,
    room: int,
    first: Drawn | None = None,
) -> tuple[State, Drawn]:
    """Draw tokens until there are `limit`, or every sequence is done; `first` counts as one of them.

    The result has `room` in front, NO_TOKEN and zeros where nothing was drawn.
    """
    like = first or jax.eval_shape(partial(_step, params, how, wish), state)[1]
    drawn = jax.tree.map(lambda one: jnp.zeros((room, *one.shape), one.dtype), like)
    drawn = drawn._replace(tokens=drawn.tokens + NO_TOKEN)

    def put(drawn: Drawn, one: Drawn, place: Any) -> Drawn:
        return jax.tree.map(lambda all_, new: all_.at[place].set(new), drawn, one)

    def unfinished(carry: tuple[Array, State, Drawn]) -> Bool[Array, ""]:
        number, state, _ = carry
        return (number < limit) & ~state.done.all()

    def body(carry: tuple[Array, State, Drawn]) -> tuple[Array, State, Drawn]:
        number, state, drawn = carry
        state, one = _step(params, how, wish, state)
        return number + 1, state, put(drawn, one, number)

    if first is not None:
        drawn = put(drawn, first, 0)
    number = jnp.asarray(0 if first is None else 1, jnp.int32)
    _, state, drawn = jax.lax.while_loop(unfinished, body, (number, state, drawn))
    return state, drawn


def unstack_state(state: State) -> State:
    """The state with an array per layer, to go with `unstack`ed parameters."""
    cache = state.cache
    return state._replace(cache=Cache(layers(cache.k), layers(cache.v), cache.length))


def narrowed(params: Params, compute: Compute) -> Params:
    """The parameters in the dtype to compute in: once, before a loop that would do it at every token."""
    dtype = compute.dtype
    return params if dtype is None else jax.tree.map(lambda array: array.astype(dtype), params)


def plan(config: Config, width: int, room: int) -> tuple[int, int]:
    """The rows of the cache, and how many tokens of the prompt are read at once.

    Rows that a window has left behind are used again; a long prompt is then read in pieces.
    """
    rows = width + room
    if config.n_context is not None:
        rows = max(min(rows, config.n_context), width)
    if config.window is None:
        return rows, width
    piece = min(width, bucket(config.window))
    piece = piece if width % piece == 0 else width
    return min(rows, config.window + piece - 1), piece


def read_on(
    params: Params,
    how: How,
    wish: Wish,
    tokens: Int[Array, "b t"],
    cache: Cache,
    last: Int[Array, "..."],
) -> Read:
    """Read more tokens of each sequence, with an eye on the one at index `last`."""

    def one(tokens: Array, cache: Cache, last: Array, since: Array | None) -> tuple[Any, ...]:
        edit = how.edit
        if since is not None:
            edit = begun(edit, since, cache.length + jnp.arange(len(tokens), dtype=jnp.int32), last)
        out = forward(
            params, how.config, tokens, cache,
            capture=how.capture, edit=edit, read=last[None], compute=how.compute,
        )  # fmt: skip
        return out.logits[0], _at(out.activations, last), out.cache

    layer = 0 if isinstance(cache.k, list) else 1
    axes = Cache(layer, layer, _batch_axis(cache.length))  # pyright: ignore[reportArgumentType]
    since = None if wish.since is None else _batch_axis(wish.since)
    batched = jax.vmap(one, in_axes=(0, axes, _batch_axis(last), since), out_axes=(0, 0, axes))
    return Read(*batched(tokens, cache, last, wish.since))


def begun(
    edit: Edit, since: Int[Array, ""], positions: Int[Array, " t"], last: Int[Array, ""]
) -> Edit:
    """The edit, from a position on; earlier ones keep their values, and so does what fills a prompt up.

    Nothing reads the filling, but NaN in it would spread: a weight of 0 times NaN is NaN.
    """

    def gated(site: Site, layer: Layer, value: Array) -> Any:
        changed: Any = edit(site, layer, value)
        if changed is value or jnp.shape(changed) != value.shape or jnp.iscomplexobj(changed):
            return changed  # nothing to hold back, or something for the Tap to refuse
        here = positions[last][None] if site in READ else positions
        acts = (here >= since) & (here <= positions[last])
        shape = [1] * value.ndim
        shape[position_axis(site)] = -1
        return jnp.where(acts.reshape(shape), jnp.asarray(changed, value.dtype), value)

    return gated


def _read_in_pieces(
    params: Params,
    how: How,
    wish: Wish,
    prompts: Int[Array, "b t"],
    cache: Cache,
    lengths: Int[Array, "..."],
    piece: int,
) -> Read:
    """The prompts so many tokens at a time: no more need to be kept than a window and a piece."""

    def turn(read: Read, start: Array) -> tuple[Read, None]:
        tokens = jax.lax.dynamic_slice_in_dim(prompts, start, piece, axis=1)
        cache = read.cache._replace(length=jnp.zeros_like(lengths) + start)
        new = read_on(params, how, wish, tokens, cache, jnp.clip(lengths - 1 - start, 0, piece - 1))
        begun = start < lengths  # a prompt that has ended stays as it is

        def choose(axis: int, new: Array, old: Array) -> Array:
            shape = [1] * new.ndim
            shape[axis] = -1
            return jnp.where(begun.reshape(shape) if begun.ndim else begun, new, old)

        kept = jax.tree.map(partial(choose, 0), (new.logits, new.activations), read[:2])
        k, v = jax.tree.map(partial(choose, 1), new.cache[:2], read.cache[:2])
        return Read(kept[0], kept[1], Cache(k, v, lengths)), None

    shapes = jax.eval_shape(
        lambda: read_on(params, how, wish, prompts[:, :piece], cache, lengths * 0)
    )
    start = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    starts = jnp.arange(0, prompts.shape[1], piece, dtype=jnp.int32)
    return jax.lax.scan(turn, start._replace(cache=cache._replace(length=lengths)), starts)[0]


def _step(params: Params, how: How, wish: Wish, state: State) -> tuple[State, Drawn]:
    """Read the token drawn last, and draw another."""
    place = jnp.zeros((), jnp.int32)
    return _draw(
        how, wish, state, read_on(params, how, wish, state.token[:, None], state.cache, place)
    )


def _draw(how: How, wish: Wish, state: State, read: Read) -> tuple[State, Drawn]:
    """The next token of each sequence, by its own key and its number alone."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(wish.keys, state.drawn)
    seen = None if state.seen is None else 0
    token = jax.vmap(choose, in_axes=(0, None, 0, seen))(
        keys, wish.sampling, read.logits, state.seen
    )
    log_probs = jax.vmap(lambda logits, token: jax.nn.log_softmax(logits)[token])(
        read.logits, token
    )
    was_done = state.done
    over = was_done | jnp.isnan(log_probs)
    shown = jnp.where(over, NO_TOKEN, token)

    def unless_done(values: Array) -> Array:
        return jax.vmap(lambda done, own: jnp.where(done, jnp.zeros_like(own), own))(
            was_done, values
        )

    tail = jnp.concatenate([state.tail[:, 1:], shown[:, None]], axis=1)
    matches = (tail[:, None] == wish.stops) | (wish.stops == NO_TOKEN)  # [b stops m]
    if state.seen is not None:
        occurs = jnp.arange(how.config.n_vocab, dtype=jnp.int32) == shown[:, None]
        state = state._replace(seen=state.seen | occurs)
    state = state._replace(
        cache=read.cache,
        token=jnp.where(over, 0, token),
        drawn=state.drawn + 1,
        tail=tail,
        done=over | matches.all(axis=-1).any(axis=-1),
    )
    activations = jax.tree.map(unless_done, read.activations)
    return state, Drawn(shown, unless_done(log_probs), activations)


def _at(activations: dict[str, Array], place: Int[Array, ""]) -> dict[str, Array]:
    """The activations of one position, without their axis t."""
    return {
        site: jax.lax.dynamic_index_in_dim(
            value, 0 if site in READ else place, activation_axis(site), keepdims=False
        )
        for site, value in activations.items()
    }


def _batch_axis(array: Array) -> int | None:
    """Of what may be one for all sequences."""
    return 0 if array.ndim else None
