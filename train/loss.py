"""The loss of one sequence: the cross-entropy of each next token."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.model.params import Params
from jaxformer.model.sites import Edit, identity
from jaxformer.model.tap import Tap
from jaxformer.model.transformer import forward, logits_of


def token_losses(
    params: Params,
    config: Config,
    window: Int[Array, " window"],
    compute: Compute,
    *,
    edit: Edit = identity,
    vocab_chunk: int | None = None,
) -> Float[Array, " context"]:
    """Return the cross-entropy of each next token, in nats, as float32.

    Args:
        window: the tokens of the context, and one more, which is only a target.
        compute: how to run the model.
        edit: as in `forward`. With a vocab_chunk it is called at "logits" once per chunk, with some of the entries.
        vocab_chunk: the number of vocabulary entries whose logits are computed at a time; the backward pass computes
            them again. None: all. Use it inside compiled code: outside, forward computes all logits as well.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=50)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> losses = jax.jit(lambda window: token_losses(params, config, window, Compute(), vocab_chunk=16))
    >>> losses(jnp.array([3, 1, 4, 1])).shape
    (3,)
    """
    tokens, labels = window[:-1], window[1:]
    if vocab_chunk is None or vocab_chunk >= config.n_vocab:
        logits = forward(params, config, tokens, edit=edit, compute=compute).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).astype(jnp.float32)
    seen = forward(params, config, tokens, capture=("final",), edit=edit, compute=compute)
    final = seen.activations["final"]
    return _in_chunks(params, config, final, labels, edit, vocab_chunk).astype(jnp.float32)


def _in_chunks(
    params: Params,
    config: Config,
    final: Float[Array, "t d"],
    labels: Int[Array, " t"],
    edit: Edit,
    vocab_chunk: int,
) -> Float[Array, " t"]:
    """Return log Σ_v exp(logit_v) - logit_label for each token, one chunk of the vocabulary after another.

    Source: the sum in parts: Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"; computed again
    in the backward pass: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    """
    parts, width = chunk_shape(config.n_vocab, vocab_chunk)
    length = config.n_vocab // parts
    axes = {"W_E": 0} if params.W_U is None else {"W_U": 1}
    axes |= {} if params.b_U is None else {"b_U": 0}
    arrays = {name: _folded(getattr(params, name), axis, parts) for name, axis in axes.items()}

    def share(i: Int[Array, ""]) -> tuple[Array, Array]:
        """Return a chunk's log Σ exp, and the label's logit if the label is in the chunk, else 0."""
        start = jnp.minimum(i * width, length - width)
        # Slice here: a loop over ready-made chunks would need a copy of the array.
        own: Any = {
            name: _cut(arrays[name], axis, start, width).astype(final.dtype)
            for name, axis in axes.items()
        }
        logits = Tap((), edit)("logits", logits_of(params._replace(**own), config, final))
        within = start + jnp.arange(width, dtype=jnp.int32)
        entries = (jnp.arange(parts, dtype=jnp.int32)[:, None] * length + within).ravel()
        fresh = jnp.tile(within >= i * width, parts)  # the last chunk overlaps the one before
        logits = jnp.where(fresh, logits, -jnp.inf)
        here = fresh & (labels[:, None].astype(jnp.int32) == entries)
        return jax.nn.logsumexp(logits, axis=-1), jnp.where(here, logits, 0).sum(axis=-1)

    # A barrier against CSE is not needed, because both passes are loops.
    share = jax.checkpoint(share, prevent_cse=False)
    sums, of_label = jax.lax.map(share, jnp.arange(-(-length // width), dtype=jnp.int32))
    losses = jax.nn.logsumexp(sums, axis=0) - of_label.sum(axis=0)
    return jnp.where((labels >= 0) & (labels < config.n_vocab), losses, jnp.nan)


def chunk_shape(n_vocab: int, most: int) -> tuple[int, int]:
    """Return the number of parts that the vocabulary is split into, and the entries that a chunk takes of each part.

    A chunk takes entries of every part. So if the vocabulary is sharded over 2, 4, ... or 64 devices, and their number
    divides it, all devices work on every chunk.

    Args:
        most: the most entries of a chunk.

    >>> chunk_shape(32_000, 8192), chunk_shape(50_257, 8192)
    ((64, 125), (1, 7180))
    """
    parts = math.gcd(n_vocab, 64, 1 << (most.bit_length() - 1))
    length = n_vocab // parts
    number = -(-length // (most // parts))
    return parts, -(-length // number)


def _folded(array: Array, axis: int, parts: int) -> Array:
    """Split the axis v in two: the parts, and the entries within a part."""
    return array.reshape(*array.shape[:axis], parts, -1, *array.shape[axis + 1 :])


def _cut(array: Array, axis: int, start: Int[Array, ""], width: int) -> Array:
    """Take `width` entries of every part, and join them along v."""
    some = jax.lax.dynamic_slice_in_dim(array, start, width, axis + 1)
    return some.reshape(*some.shape[:axis], -1, *some.shape[axis + 2 :])
