"""The decoding loop: sample a token of each sequence, read it, sample the next. Everything here is traced."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxformer.decoding.inputs import NO_TOKEN
from jaxformer.decoding.prefill import Read, read_on, read_prompts
from jaxformer.decoding.request import Program, Request
from jaxformer.decoding.sampling import choose
from jaxformer.decoding.stacking import unstack
from jaxformer.model.params import Params


class State(NamedTuple):
    """A batch of sequences that are being generated."""

    cache: Any  # Cache of unstacked layers; None before the prefill
    token: Int[Array, " b"]  # the token sampled last, not yet read
    drawn: Int[Array, ""]  # the number of tokens sampled
    tail: Int[Array, "b length"]  # the latest sampled tokens, to compare with the stop sequences
    seen: (
        Bool[Array, "b v"] | None
    )  # tokens that occurred; only where there is a repetition penalty
    done: Bool[Array, " b"]


class SampledToken(NamedTuple):
    """One sampled token of each sequence, or several, along a first axis `new`."""

    tokens: Int[Array, "*new b"]  # NO_TOKEN once a sequence is done, or where its logits are NaN
    log_probs: Float[Array, "*new b"]  # under the model's distribution, before any processor
    activations: dict[str, Array]  # of the position whose logits gave the token


def initial_state(
    program: Program, request: Request, prompts: Int[Array, "b t"], lengths: Int[Array, "..."]
) -> State:
    """Return the state before the prefill."""
    batch, width = prompts.shape
    seen = None
    if request.sampling.repetition_penalty is not None:
        real = jnp.arange(width, dtype=jnp.int32) < jnp.broadcast_to(lengths, batch)[:, None]
        none = jnp.zeros(program.config.n_vocab, bool)
        seen = jax.vmap(lambda tokens, real: none.at[tokens].max(real))(prompts, real)
    return State(
        cache=None,
        token=prompts[:, 0],
        drawn=jnp.zeros((), jnp.int32),
        tail=jnp.full((batch, request.stops.shape[1]), NO_TOKEN - 1, jnp.int32),
        seen=seen,
        done=jnp.zeros(batch, bool),
    )


def sample_first(
    params: Params,
    program: Program,
    request: Request,
    state: State,
    prompts: Int[Array, "b t"],
    lengths: Int[Array, "..."],
    *,
    room: int,
) -> tuple[State, SampledToken]:
    """Read the prompts into a new cache with room for `room` further tokens, and sample a token of each."""
    read = read_prompts(params, program, request.editing, prompts, lengths, room=room)
    state, sampled = _sample(program, request, state, read)
    return state._replace(cache=unstack(read.cache)), sampled


def decode(
    params: Params,
    program: Program,
    request: Request,
    state: State,
    limit: Int[Array, ""],
    *,
    room: int,
    first: SampledToken | None = None,
) -> tuple[State, SampledToken]:
    """Sample until there are `limit` tokens, or every sequence is done; `first` counts as one of them.

    The axis `new` of the result has size `room`. Where nothing was sampled it holds NO_TOKEN and zeros.
    """
    like = first or jax.eval_shape(partial(_step, params, program, request), state)[1]
    sampled = jax.tree.map(lambda one: jnp.zeros((room, *one.shape), one.dtype), like)
    sampled = sampled._replace(tokens=sampled.tokens + NO_TOKEN)

    def put(sampled: SampledToken, one: SampledToken, index: Any) -> SampledToken:
        write = partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
        return jax.tree.map(write, sampled, one)

    def unfinished(carry: tuple[Array, State, SampledToken]) -> Bool[Array, ""]:
        index, state, _ = carry
        return (index < limit) & ~state.done.all()

    def body(carry: tuple[Array, State, SampledToken]) -> tuple[Array, State, SampledToken]:
        index, state, sampled = carry
        state, one = _step(params, program, request, state)
        return index + 1, state, put(sampled, one, index)

    if first is not None:
        sampled = put(sampled, first, 0)
    index = jnp.asarray(0 if first is None else 1, jnp.int32)
    _, state, sampled = jax.lax.while_loop(unfinished, body, (index, state, sampled))
    return state, sampled


def _step(
    params: Params, program: Program, request: Request, state: State
) -> tuple[State, SampledToken]:
    """Read the token sampled last, and sample the next."""
    tokens, last = state.token[:, None], jnp.int32(0)
    read = read_on(params, program, request.editing, tokens, state.cache, last)
    return _sample(program, request, state, read)


def _sample(
    program: Program, request: Request, state: State, read: Read
) -> tuple[State, SampledToken]:
    """Sample the next token of each sequence. Randomness comes only from the sequence's key and the token's index."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(request.keys, state.drawn)
    seen = None if state.seen is None else 0
    token = jax.vmap(choose, in_axes=(0, None, 0, seen))(
        keys, request.sampling, read.logits, state.seen
    )
    log_probs = jax.vmap(lambda logits, token: jax.nn.log_softmax(logits)[token])(
        read.logits, token
    )
    done = state.done  # before this token: a token that completes a stop sequence is still returned
    over = done | jnp.isnan(log_probs)
    shown = jnp.where(over, NO_TOKEN, token)

    def unless_done(values: Array) -> Array:
        return jax.vmap(lambda done, own: jnp.where(done, jnp.zeros_like(own), own))(done, values)

    tail = jnp.concatenate([state.tail[:, 1:], shown[:, None]], axis=1)
    matches = (tail[:, None] == request.stops) | (request.stops == NO_TOKEN)  # [b stops length]
    if state.seen is not None:
        occurs = jnp.arange(program.config.n_vocab, dtype=jnp.int32) == shown[:, None]
        state = state._replace(seen=state.seen | occurs)
    state = state._replace(
        cache=read.cache,
        token=jnp.where(over, state.token, token),
        drawn=state.drawn + 1,
        tail=tail,
        done=over | matches.all(axis=-1).any(axis=-1),
    )
    activations = jax.tree.map(unless_done, read.activations)
    return state, SampledToken(shown, unless_done(log_probs), activations)
