"""Beam search: the likeliest continuations that can be found by following the best few at every token."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.generate import check_finite, gather_how, gather_wish
from jaxformer.params import Params, check_params, unstack
from jaxformer.prompts import bucket, check_number, check_room, gather
from jaxformer.reading import How, Wish, narrowed, read_on, read_prompts
from jaxformer.sampling import Sampling
from jaxformer.sites import Edit, keep


class Beams(NamedTuple):
    """Continuations of one prompt, the likeliest first, and the log-probability of each as a whole."""

    tokens: Int[Array, "w n"]
    log_probs: Float[Array, " w"]


def beam_search(
    params: Params,
    config: Config,
    prompt: Any,
    n_tokens: int,
    width: int,
    *,
    edit: Edit = keep,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Beams:
    """The `width` likeliest continuations, n_tokens long, that a beam of that width finds.

    A width of 1 is greedy generation.

    Args:
        params: as `init` gives them.
        config: their architecture.
        prompt: token ids `t`.
        n_tokens: how many to add; compiled anew for each number.
        width: continuations to follow.
        edit: as in `forward`.
        compute: how to run it.

    Raises:
        ValueError: a width below 1 or above n_vocab, several prompts, and all that `generate` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> beam_search(params, config, [3, 1], 6, 4).tokens.shape
    (4, 6)
    """
    how = gather_how(config, edit, (), compute)
    prompts = gather(prompt, config)
    if not prompts.single:
        raise ValueError("beam_search takes one prompt at a time")
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= config.n_vocab:
        raise ValueError(
            f"width={width!r} must be a whole number from 1 to the vocabulary's {config.n_vocab}"
        )
    check_number(n_tokens)
    check_room(config, prompts.longest, n_tokens)
    check_params(params, config)
    wish = gather_wish(config, prompts, jax.random.key(0), Sampling(temperature=0), None, None)
    found = _search(
        params, how, wish, prompts.tokens, prompts.lengths, n_tokens=n_tokens, width=width
    )
    check_finite(found.log_probs[None])
    return found


@partial(jax.jit, static_argnames=("how", "n_tokens", "width"))
def _search(
    params: Params, how: How, wish: Wish, prompts: Any, lengths: Any, *, n_tokens: int, width: int
) -> Beams:
    params = narrowed(params, how.compute)
    read = read_prompts(params, how, wish, prompts, lengths, room=bucket(n_tokens))
    totals, token = jax.lax.top_k(jax.nn.log_softmax(read.logits[0]), width)
    cache = unstack(read.cache)
    rows = jax.tree.map(lambda array: jnp.repeat(array, width, axis=0), cache[:2])
    cache = cache._replace(k=rows[0], v=rows[1])
    tokens = jnp.zeros((width, n_tokens), jnp.int32).at[:, 0].set(token)
    layered, n_vocab = unstack(params), how.config.n_vocab

    def follow(number: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        totals, tokens, cache = carry
        last = jax.lax.dynamic_index_in_dim(tokens, number - 1, axis=1)
        read = read_on(layered, how, wish, last, cache, jnp.zeros((), jnp.int32))
        all_ = totals[:, None] + jax.nn.log_softmax(read.logits)  # [w v]
        totals, places = jax.lax.top_k(all_.reshape(-1), width)
        parents = places // n_vocab
        tokens = tokens[parents].at[:, number].set((places % n_vocab).astype(jnp.int32))
        rows = jax.tree.map(lambda array: array[parents], read.cache[:2])
        return totals, tokens, read.cache._replace(k=rows[0], v=rows[1])

    totals, tokens, _ = jax.lax.fori_loop(1, n_tokens, follow, (totals, tokens, cache))
    return Beams(tokens, totals)
