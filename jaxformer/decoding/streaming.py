"""Generation piece by piece: tokens as they come, and texts longer than what the model sees at once."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Key

from jaxformer.checks import positive_integer
from jaxformer.config import Compute, Config
from jaxformer.decoding.generate import check_finite, gather_how, gather_wish
from jaxformer.decoding.inputs import Prompts, bucket, gather
from jaxformer.decoding.loop import Drawn, State, Wish, decode, fresh, prefill
from jaxformer.decoding.prefill import How, narrowed
from jaxformer.decoding.sampling import Sampling
from jaxformer.model.params import Params, check_params, unstack
from jaxformer.model.sites import Edit, keep


def stream_tokens(
    params: Params,
    config: Config,
    prompt: Any,
    n_tokens: int,
    key: Key[jax.Array, ""],
    *,
    sampling: Sampling = Sampling(),  # noqa: B008  frozen
    stop: Any = None,
    edit: Edit = keep,
    context: int | None = None,
    chunk: int = 16,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Iterator[Int[np.ndarray, " c"]]:
    """The tokens of `generate` for one prompt as they come: the first alone, then so many at a time.

    Args:
        params: as for `generate`, as is all that is not named here. While it runs, a copy of them is held
            unless they are unstacked already.
        config: the architecture.
        prompt: token ids `t`.
        n_tokens: how many to add, at most; no position table limits them.
        key: token j is drawn with fold_in(key, j).
        sampling: how a token is chosen.
        stop: what ends the text.
        edit: as in `forward`.
        context: the most tokens that the model sees at once; None: n_context, or all. When they are full, the
            latest half of them is read anew, and the text goes on from there.
        chunk: tokens at a time.

    Raises:
        ValueError: as `generate`; a context below 1 or above n_context. All but NaN before anything runs.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> [len(tokens) for tokens in stream_tokens(params, config, [3, 1], 20, jax.random.key(1))]
    [1, 16, 3]
    """
    how = gather_how(config, edit, (), compute)
    prompts = gather(prompt, config)
    if not prompts.single:
        raise ValueError("stream_tokens takes one prompt; generate takes a batch")
    n_tokens, chunk = positive_integer("n_tokens", n_tokens), positive_integer("chunk", chunk)
    context = None if context is None else positive_integer("context", context)
    if context and config.n_context is not None and context > config.n_context:
        raise ValueError(
            f"context={context} is more than the position table's n_context={config.n_context}"
        )
    context = context or config.n_context
    wish = gather_wish(config, prompts, key, sampling, stop, None)
    wish = wish._replace(keys=wish.keys[None])
    check_params(params, config)
    return _stream(narrowed(params, compute), how, wish, prompts, n_tokens, context, chunk)


def _stream(
    params: Params,
    how: How,
    wish: Wish,
    prompts: Prompts,
    n_tokens: int,
    context: int | None,
    chunk: int,
) -> Iterator[Int[np.ndarray, " c"]]:
    text = prompts.longest + n_tokens
    most = min(context or text, text)
    layered, rows = unstack(params), bucket(most)
    state = fresh(how, wish, jnp.asarray(prompts.tokens), jnp.asarray(prompts.lengths))
    left = n_tokens
    window = prompts.tokens[0, : prompts.longest].tolist()[-most:]
    while left and not state.done.all():
        prompts = gather(window, how.config)
        room = max(rows - prompts.tokens.shape[1], 1)
        unread = state._replace(cache=None)
        state, drawn = _prefill(
            params, how, wish, unread, prompts.tokens, prompts.lengths, room=room
        )
        # The last token drawn is not read: it takes no row.
        new, segment = _kept(drawn, n_tokens - left), min(left, most - len(window) + 1)
        while True:
            yield new
            window, left, segment = [*window, *new.tolist()], left - len(new), segment - len(new)
            if segment < 1 or state.done.all():
                break
            limit = np.int32(min(chunk, segment))
            state, drawn = _decode(layered, how, wish, state, limit, room=chunk)
            new = _kept(drawn, n_tokens - left)
        window = window[-max(most // 2, 1) :]


@partial(jax.jit, static_argnames=("how", "room"))
def _prefill(
    params: Params, how: How, wish: Wish, state: State, prompts: Any, lengths: Any, *, room: int
) -> tuple[State, Drawn]:
    state, drawn = prefill(params, how, wish, state, prompts, lengths, room=room)
    return state, jax.tree.map(lambda one: one[None], drawn)


_decode = partial(jax.jit, static_argnames=("how", "room"), donate_argnums=3)(decode)


def _kept(drawn: Drawn, before: int) -> Int[np.ndarray, " c"]:
    check_finite(drawn.log_probs[:, 0], before)
    tokens = np.asarray(drawn.tokens[:, 0])
    return tokens[tokens >= 0]
