"""What `forward` holds its arguments to, where they can be looked at."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxformer.checks import check_vocabulary
from jaxformer.config import Config
from jaxformer.model.cache import Cache, check_cache
from jaxformer.model.params import Params


def check_tokens(tokens: Array, params: Params, config: Config, cache: Cache | None) -> None:
    """Refuse tokens that are not one sequence of ids of this vocabulary, or that do not fit.

    Raises:
        ValueError: naming what they are, and what they must be.
    """
    if tokens.ndim != 1:
        raise ValueError(
            f"forward takes one sequence, not tokens of shape {tokens.shape}; "
            "for a batch: jax.vmap(forward, in_axes=(None, None, 0))"
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens are {tokens.dtype}; they must be integers, the ids of a tokenizer"
        )
    if config.n_context is not None and len(tokens) > config.n_context:
        why = f"the position table holds n_context={config.n_context}"
        raise ValueError(
            f"{len(tokens)} tokens are too many: {why}; give at most {config.n_context}"
        )
    if cache is not None:
        check_cache(cache, config, len(tokens))
        if isinstance(params.blocks, list) != isinstance(cache.k, list):
            raise ValueError(
                "either the parameters or the cache are unstacked; unstack(...) both or none"
            )
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(np.asarray(tokens), config.n_vocab)


def check_read(read: Any, length: int) -> Int[Array, " r"]:
    """Places along t as an array, those that can be looked at held to being there.

    Raises:
        ValueError: no whole numbers along one axis, or a place outside.
    """
    places = jnp.asarray(read)
    if places.ndim != 1 or not jnp.issubdtype(places.dtype, jnp.integer):
        raise ValueError(
            f"read has shape {places.shape} and dtype {places.dtype}; give a one-axis array of places along t"
        )
    if not isinstance(places, jax.core.Tracer):
        outside = [place for place in np.asarray(places) if not -length <= place < length]
        if outside:
            raise ValueError(f"read holds {outside[0]}, but there are {length} tokens to read at")
    return places
