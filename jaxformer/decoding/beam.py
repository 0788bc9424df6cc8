"""Beam search: extend the few most probable continuations by every token, and keep the best of the results."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.checks import positive_integer
from jaxformer.config import Compute, Config
from jaxformer.decoding.generation import NAN_ADVICE
from jaxformer.decoding.inputs import bucket, check_room, gather
from jaxformer.decoding.prefill import cast_params, check_edit_of_passes, read_on, read_prompts
from jaxformer.decoding.request import EditFrom, Program, make_program
from jaxformer.decoding.stacking import unstack
from jaxformer.model.cache import Cache, batch_axis
from jaxformer.model.checks import check_order, check_params
from jaxformer.model.params import Params
from jaxformer.model.tap import compiled
from jaxformer.sites import Edit, EditFunction, identity


class Beams(NamedTuple):
    """Continuations of one prompt, the most probable first, and the total log-probability of each."""

    tokens: Int[Array, "w new"]
    log_probs: Float[Array, " w"]


def beam_search(
    params: Params,
    config: Config,
    prompt: Any,
    n_tokens: int,
    width: int,
    *,
    edit: Edit = identity,
    compute: Compute = Compute(),
) -> Beams:
    """Return the `width` most probable continuations of n_tokens tokens that a beam of this width finds.

    A width of 1 is greedy generation, except that rounding of the running total decides near-ties.

    Args:
        prompt: token ids `t`.
        n_tokens: the length of the continuations; another number recompiles.
        width: the number of continuations that are kept at every token.
        edit: as in `generate`.

    Raises:
        ValueError: a width below 1 or above n_vocab, several prompts, and what `generate` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> beam_search(params, config, [3, 1], 6, 4).tokens.shape
    (4, 6)
    """
    check_order(params, config)
    program = make_program(config, (), compute)
    prompts = gather(prompt, config)
    if not prompts.single:
        raise ValueError("beam_search takes one prompt; call it once for each prompt of a batch")
    n_tokens = positive_integer("n_tokens", n_tokens)
    width = positive_integer("width", width, most=config.n_vocab)
    check_room(config, prompts.longest, n_tokens)
    check_params(params, config)
    check_edit_of_passes(edit, program, prompts.tokens.shape[1], bucket(n_tokens))
    search = compiled(_search, edit, static=("program", "n_tokens", "width"))
    found = search(
        params, prompts.tokens, prompts.lengths, program=program, n_tokens=n_tokens, width=width
    )
    totals = found.log_probs
    if not isinstance(totals, jax.core.Tracer) and np.isnan(np.asarray(totals)).any():
        raise ValueError(f"the logits of a beam are NaN; {NAN_ADVICE}")
    return found


def _search(
    edit: EditFunction,
    params: Params,
    prompts: Any,
    lengths: Any,
    *,
    program: Program,
    n_tokens: int,
    width: int,
) -> Beams:
    params, editing = cast_params(params, program.compute), EditFrom(edit)
    read = read_prompts(params, program, editing, prompts, lengths, room=bucket(n_tokens))
    totals, token = jax.lax.top_k(jax.nn.log_softmax(read.logits[0]), width)
    cache = _select(unstack(read.cache), jnp.zeros(width, jnp.int32))
    tokens = jnp.zeros((width, n_tokens), jnp.int32).at[:, 0].set(token)
    unstacked, n_vocab = unstack(params), program.config.n_vocab

    def extend(index: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        totals, tokens, cache = carry
        last = jax.lax.dynamic_index_in_dim(tokens, index - 1, axis=1)
        read = read_on(unstacked, program, editing, last, cache, jnp.zeros((), jnp.int32))
        extended = totals[:, None] + jax.nn.log_softmax(read.logits)  # [w v]
        totals, best = jax.lax.top_k(extended.reshape(-1), width)
        parents = best // n_vocab
        tokens = tokens[parents].at[:, index].set((best % n_vocab).astype(jnp.int32))
        return totals, tokens, _select(read.cache, parents)

    totals, tokens, _ = jax.lax.fori_loop(1, n_tokens, extend, (totals, tokens, cache))
    return Beams(tokens, totals)


def _select(cache: Cache, parents: Int[Array, " w"]) -> Cache:
    """Select, for each beam, the cache of the sequence that it extends."""
    axis = batch_axis(cache)
    k, v = jax.tree.map(lambda array: jnp.take(array, parents, axis), cache[:2])
    return cache._replace(k=k, v=v)
