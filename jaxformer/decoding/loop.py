"""The engine of generation: draw a token of each sequence, read it, draw the next. All of it is traced."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.decoding.inputs import NO_TOKEN
from jaxformer.decoding.prefill import How, Read, read_on, read_prompts
from jaxformer.decoding.sampling import Sampling, choose
from jaxformer.model.params import Params, unstack


class Wish(NamedTuple):
    """What may differ from call to call of one program."""

    keys: Key[Array, "*b"]  # one for each sequence; or for all, to be folded with their numbers
    sampling: Sampling
    stops: Any  # Int[Array, "stops m"]; shorter ones filled up in front
    since: Int[Array, "*b"] | None  # the first position to edit


class State(NamedTuple):
    """A batch of sequences in the middle of their generation."""

    cache: Any  # Cache of unstacked layers; None before anything is read
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


def fresh(how: How, wish: Wish, prompts: Int[Array, "b t"], lengths: Int[Array, "..."]) -> State:
    """The state of texts of which nothing is read yet and nothing drawn."""
    batch, width = prompts.shape
    seen = None
    if wish.sampling.repetition_penalty is not None:
        real = jnp.arange(width, dtype=jnp.int32) < jnp.broadcast_to(lengths, batch)[:, None]
        none = jnp.zeros(how.config.n_vocab, bool)
        seen = jax.vmap(lambda tokens, real: none.at[tokens].max(real))(prompts, real)
    return State(
        cache=None,
        token=prompts[:, 0],
        drawn=jnp.zeros((), jnp.int32),
        tail=jnp.full((batch, wish.stops.shape[1]), NO_TOKEN - 1, jnp.int32),
        seen=seen,
        done=jnp.zeros(batch, bool),
    )


def prefill(
    params: Params,
    how: How,
    wish: Wish,
    state: State,
    prompts: Int[Array, "b t"],
    lengths: Int[Array, "..."],
    *,
    room: int,
) -> tuple[State, Drawn]:
    """Read the texts, or their ends, and draw the next token of each, with room for so many in all."""
    read = read_prompts(params, how, wish.since, prompts, lengths, room=room)
    state, drawn = _draw(how, wish, state, read)
    return state._replace(cache=unstack(read.cache)), drawn


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
        write = partial(jax.lax.dynamic_update_index_in_dim, index=place, axis=0)
        return jax.tree.map(write, drawn, one)

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


def _step(params: Params, how: How, wish: Wish, state: State) -> tuple[State, Drawn]:
    """Read the token drawn last, and draw another."""
    read = read_on(params, how, wish.since, state.token[:, None], state.cache, jnp.int32(0))
    return _draw(how, wish, state, read)


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
    done = state.done  # before this token: one that ends a text still belongs to it
    over = done | jnp.isnan(log_probs)
    shown = jnp.where(over, NO_TOKEN, token)

    def unless_done(values: Array) -> Array:
        return jax.vmap(lambda done, own: jnp.where(done, jnp.zeros_like(own), own))(done, values)

    tail = jnp.concatenate([state.tail[:, 1:], shown[:, None]], axis=1)
    matches = (tail[:, None] == wish.stops) | (wish.stops == NO_TOKEN)  # [b stops m]
    if state.seen is not None:
        occurs = jnp.arange(how.config.n_vocab, dtype=jnp.int32) == shown[:, None]
        state = state._replace(seen=state.seen | occurs)
    state = state._replace(
        cache=read.cache,
        token=jnp.where(over, state.token, token),
        drawn=state.drawn + 1,
        tail=tail,
        done=over | matches.all(axis=-1).any(axis=-1),
    )
    activations = jax.tree.map(unless_done, read.activations)
    return state, Drawn(shown, unless_done(log_probs), activations)
