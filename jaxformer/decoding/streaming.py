"""Streaming: tokens as they are generated, also in texts longer than the model's context."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Key

from jaxformer.checks import positive_integer
from jaxformer.config import Compute, Config
from jaxformer.decoding.generation import check_finite
from jaxformer.decoding.inputs import Prompts, bucket, gather
from jaxformer.decoding.loop import SampledToken, State, decode, initial_state, sample_first
from jaxformer.decoding.prefill import cast_params, check_edit_of_passes
from jaxformer.decoding.request import Program, Request, make_program, make_request, with_edit
from jaxformer.decoding.sampling import Sampling
from jaxformer.decoding.stacking import unstack
from jaxformer.edits import Watched, is_data
from jaxformer.model.checks import check_order, check_params
from jaxformer.model.params import Params
from jaxformer.model.tap import compiled
from jaxformer.sites import Edit, EditFunction, identity


def stream_tokens(
    params: Params,
    config: Config,
    prompt: Any,
    n_tokens: int,
    key: Key[jax.Array, ""],
    *,
    temperature: Any = None,
    sampling: Sampling = Sampling(),
    stop: Any = None,
    edit: Edit = identity,
    context: int | None = None,
    chunk: int = 16,
    compute: Compute = Compute(),
) -> Iterator[Int[np.ndarray, " new"]]:
    """Yield the tokens of `generate` for one prompt: first one token, then `chunk` tokens at a time.

    The arguments that are not listed here are those of `generate`. While the iterator runs, it holds a copy of params
    unless they are unstacked already.

    Args:
        prompt: token ids `t`.
        n_tokens: the most tokens to generate; a position table does not limit them.
        key: token j is sampled with fold_in(key, j).
        context: the most tokens in the cache; None: n_context if there is a position table, else no limit. When the
            cache is full, it is dropped, and a new prefill reads the latest half of its tokens.
        chunk: tokens per piece.

    Raises:
        ValueError: what `generate` refuses, and a context below 1 or above n_context. NaN logits and what an edit
            returns are checked while the iterator runs, everything else at the call.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> [len(tokens) for tokens in stream_tokens(params, config, [3, 1], 20, jax.random.key(1))]
    [1, 16, 3]
    """
    check_order(params, config)
    program = make_program(config, (), compute)
    prompts = gather(prompt, config)
    if not prompts.single:
        raise ValueError("stream_tokens takes one prompt; generate takes a batch")
    n_tokens, chunk = positive_integer("n_tokens", n_tokens), positive_integer("chunk", chunk)
    context = None if context is None else positive_integer("context", context)
    if context and config.max_length is not None and context > config.max_length:
        raise ValueError(
            f"context={context} is more than the position table's n_context={config.max_length}; "
            "choose a smaller context"
        )
    context = context or config.max_length
    request = make_request(config, prompts, key, sampling.at(temperature), stop, None)
    request = request._replace(keys=request.keys[None])
    check_params(params, config)
    check_edit_of_passes(edit, program, prompts.tokens.shape[1], bucket(n_tokens))
    call = Call(program, request, edit if is_data(edit) else Watched(edit))
    return _stream(cast_params(params, compute), call, prompts, n_tokens, context, chunk)


class Call(NamedTuple):
    """What stays the same from piece to piece."""

    program: Program
    request: Request
    edit: Any

    def check_acted(self) -> None:
        """Refuse a function that has changed nothing in a prefill."""
        if isinstance(self.edit, Watched):
            self.edit.check_acted()


def _stream(
    params: Params, call: Call, prompts: Prompts, n_tokens: int, context: int | None, chunk: int
) -> Iterator[Int[np.ndarray, " new"]]:
    length = prompts.longest + n_tokens
    most = min(context or length, length)
    unstacked, rows = unstack(params), bucket(most)
    program, request, edit = call
    read = compiled(_prefill, edit, static=STATIC)
    go_on = compiled(_decode, edit, static=STATIC, donate=("state",))
    state = initial_state(
        program, request, jnp.asarray(prompts.tokens), jnp.asarray(prompts.lengths)
    )
    left = n_tokens
    window = prompts.tokens[0, : prompts.longest].tolist()[-most:]
    while left and not state.done.all():
        prompts = gather(window, program.config)
        room = max(rows - prompts.tokens.shape[1], 1)
        unread = state._replace(cache=None)
        state, sampled = read(
            params, request, unread, prompts.tokens, prompts.lengths, program=program, room=room
        )
        call.check_acted()
        # The last token sampled is not read, so it takes no row of the cache.
        new, segment = _checked(sampled, n_tokens - left), min(left, most - len(window) + 1)
        while True:
            yield new
            window, left, segment = [*window, *new.tolist()], left - len(new), segment - len(new)
            if segment < 1 or state.done.all():
                break
            limit = np.int32(min(chunk, segment))
            state, sampled = go_on(unstacked, request, state, limit, program=program, room=chunk)
            new = _checked(sampled, n_tokens - left)
        window = window[-max(most // 2, 1) :]


STATIC = ("program", "room")
"""The static arguments of the two programs."""


def _prefill(
    edit: EditFunction,
    params: Params,
    request: Request,
    state: State,
    prompts: Any,
    lengths: Any,
    *,
    program: Program,
    room: int,
) -> tuple[State, SampledToken]:
    request = with_edit(request, edit)
    state, sampled = sample_first(params, program, request, state, prompts, lengths, room=room)
    return state, jax.tree.map(lambda one: one[None], sampled)


def _decode(
    edit: EditFunction,
    params: Params,
    request: Request,
    state: State,
    limit: Any,
    *,
    program: Program,
    room: int,
) -> tuple[State, SampledToken]:
    return decode(params, program, with_edit(request, edit), state, limit, room=room)


def _checked(sampled: SampledToken, before: int) -> Int[np.ndarray, " new"]:
    """Return the tokens of the one sequence, after the check that their logits are not NaN."""
    check_finite(sampled.log_probs[:, 0], before)
    tokens = np.asarray(sampled.tokens[:, 0])
    return tokens[tokens >= 0]
