"""Beam search: the likeliest continuations that can be found by following the best few at every token."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.checks import positive_integer
from jaxformer.config import Compute, Config
from jaxformer.decoding.generate import WHERE_NAN_IS, gather_how
from jaxformer.decoding.inputs import bucket, check_room, gather
from jaxformer.decoding.prefill import How, narrowed, read_on, read_prompts
from jaxformer.model.cache import Cache, batch_axis
from jaxformer.model.params import Params, check_params, unstack
from jaxformer.model.sites import Edit, keep


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

    A width of 1 is greedy generation, but for near-ties that rounding of the running total decides.

    Args:
        prompt: token ids `t`.
        n_tokens: how many to add; compiled anew for each number.
        width: continuations to follow.
        edit: as in `forward`.

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
    n_tokens = positive_integer("n_tokens", n_tokens)
    width = positive_integer("width", width, most=config.n_vocab)
    check_room(config, prompts.longest, n_tokens)
    check_params(params, config)
    found = _search(params, how, prompts.tokens, prompts.lengths, n_tokens=n_tokens, width=width)
    totals = found.log_probs
    if not isinstance(totals, jax.core.Tracer) and np.isnan(np.asarray(totals)).any():
        raise ValueError(f"the logits of a beam that was followed are NaN; {WHERE_NAN_IS}")
    return found


@partial(jax.jit, static_argnames=("how", "n_tokens", "width"))
def _search(
    params: Params, how: How, prompts: Any, lengths: Any, *, n_tokens: int, width: int
) -> Beams:
    params = narrowed(params, how.compute)
    read = read_prompts(params, how, None, prompts, lengths, room=bucket(n_tokens))
    totals, token = jax.lax.top_k(jax.nn.log_softmax(read.logits[0]), width)
    cache = _rows(unstack(read.cache), jnp.zeros(width, jnp.int32))
    tokens = jnp.zeros((width, n_tokens), jnp.int32).at[:, 0].set(token)
    layered, n_vocab = unstack(params), how.config.n_vocab

    def follow(number: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        totals, tokens, cache = carry
        last = jax.lax.dynamic_index_in_dim(tokens, number - 1, axis=1)
        read = read_on(layered, how, None, last, cache, jnp.zeros((), jnp.int32))
        all_ = totals[:, None] + jax.nn.log_softmax(read.logits)  # [w v]
        totals, places = jax.lax.top_k(all_.reshape(-1), width)
        parents = places // n_vocab
        tokens = tokens[parents].at[:, number].set((places % n_vocab).astype(jnp.int32))
        return totals, tokens, _rows(read.cache, parents)

    totals, tokens, _ = jax.lax.fori_loop(1, n_tokens, follow, (totals, tokens, cache))
    return Beams(tokens, totals)


def _rows(cache: Cache, parents: Int[Array, " w"]) -> Cache:
    """The caches of some sequences of a batch."""
    axis = batch_axis(cache)
    k, v = jax.tree.map(lambda array: jnp.take(array, parents, axis), cache[:2])
    return cache._replace(k=k, v=v)
