"""Streaming: tokens as they are generated, also in texts longer than the model's context."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Key

from jaxformer.checks import positive_integer
from jaxformer.config import Compute, Config
from jaxformer.decoding.generation import check_finite
from jaxformer.decoding.inputs import Prompts, bucket, gather
from jaxformer.decoding.loop import SampledToken, State, decode, initial_state, sample_first
from jaxformer.decoding.prefill import cast_params
from jaxformer.decoding.request import Program, Request, make_program, make_request
from jaxformer.decoding.sampling import Sampling
from jaxformer.decoding.stacking import unstack
from jaxformer.model.checks import check_params
from jaxformer.model.params import Params
from jaxformer.model.sites import Edit, identity


def stream_tokens(
    params: Params,
    config: Config,
    prompt: Any,
    n_tokens: int,
    key: Key[jax.Array, ""],
    *,
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
        ValueError: what `generate` refuses, and a context below 1 or above n_context. Everything except NaN logits is
            checked at the call, before anything runs.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> [len(tokens) for tokens in stream_tokens(params, config, [3, 1], 20, jax.random.key(1))]
    [1, 16, 3]
    """
    program = make_program(config, edit, (), compute)
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
    request = make_request(config, prompts, key, sampling, stop, None)
    request = request._replace(keys=request.keys[None])
    check_params(params, config)
    return _stream(
        cast_params(params, compute), program, request, prompts, n_tokens, context, chunk
    )


def _stream(
    params: Params,
    program: Program,
    request: Request,
    prompts: Prompts,
    n_tokens: int,
    context: int | None,
    chunk: int,
) -> Iterator[Int[np.ndarray, " new"]]:
    length = prompts.longest + n_tokens
    most = min(context or length, length)
    unstacked, rows = unstack(params), bucket(most)
    state = initial_state(
        program, request, jnp.asarray(prompts.tokens), jnp.asarray(prompts.lengths)
    )
    left = n_tokens
    window = prompts.tokens[0, : prompts.longest].tolist()[-most:]
    while left and not state.done.all():
        prompts = gather(window, program.config)
        room = max(rows - prompts.tokens.shape[1], 1)
        unread = state._replace(cache=None)
        state, sampled = _prefill(
            params, program, request, unread, prompts.tokens, prompts.lengths, room=room
        )
        # The last token sampled is not read, so it takes no row of the cache.
        new, segment = _checked(sampled, n_tokens - left), min(left, most - len(window) + 1)
        while True:
            yield new
            window, left, segment = [*window, *new.tolist()], left - len(new), segment - len(new)
            if segment < 1 or state.done.all():
                break
            limit = np.int32(min(chunk, segment))
            state, sampled = _decode(unstacked, program, request, state, limit, room=chunk)
            new = _checked(sampled, n_tokens - left)
        window = window[-max(most // 2, 1) :]


@partial(jax.jit, static_argnames=("program", "room"))
def _prefill(
    params: Params,
    program: Program,
    request: Request,
    state: State,
    prompts: Any,
    lengths: Any,
    *,
    room: int,
) -> tuple[State, SampledToken]:
    state, sampled = sample_first(params, program, request, state, prompts, lengths, room=room)
    return state, jax.tree.map(lambda one: one[None], sampled)


_decode = partial(jax.jit, static_argnames=("program", "room"), donate_argnums=3)(decode)


def _checked(sampled: SampledToken, before: int) -> Int[np.ndarray, " new"]:
    """Return the tokens of the one sequence, after the check that their logits are not NaN."""
    check_finite(sampled.log_probs[:, 0], before)
    tokens = np.asarray(sampled.tokens[:, 0])
    return tokens[tokens >= 0]
