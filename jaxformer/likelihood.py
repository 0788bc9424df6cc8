"""How likely a model finds a text: the log-probability of each token, the loss and the perplexity."""

import math
from collections.abc import Iterable
from typing import Any, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxformer.checks import positive_integer
from jaxformer.config import Compute, Config
from jaxformer.edits import check_capture
from jaxformer.model.checks import Inputs, Integers, check_inputs
from jaxformer.model.params import Params
from jaxformer.model.tap import Tap, compiled
from jaxformer.model.transformer import logits_of, run_model
from jaxformer.sites import Edit, EditFunction, identity

Scores = Float[Array, " targets"]


@overload
def score(
    params: Params, config: Config, tokens: Integers, *,
    segments: Integers | None = None, edit: Edit = identity, vocab_chunk: int | None = None,
    compute: Compute = Compute(),
) -> Scores: ...  # fmt: skip
@overload
def score(
    params: Params, config: Config, tokens: Integers, *,
    segments: Integers | None = None, edit: Edit = identity, vocab_chunk: int | None = None,
    compute: Compute = Compute(), capture: str | Iterable[str],
) -> tuple[Scores, dict[str, Array]]: ...  # fmt: skip
def score(
    params: Params, config: Config, tokens: Integers, *,
    segments: Integers | None = None, edit: Edit = identity, vocab_chunk: int | None = None,
    compute: Compute = Compute(), capture: str | Iterable[str] = (),
) -> Scores | tuple[Scores, dict[str, Array]]:  # fmt: skip
    """Return log p(token | all tokens before it), in nats, for every token but the first; `jax.vmap` for a batch.

    Each length compiles a program, which is kept: pad texts of many lengths to a few.

    Args:
        segments: as in `forward`. The first token of a document has the score 0, and so has a token whose number is
            negative: it is padding.
        edit: as in `forward`. With a vocab_chunk it acts on "logits" chunk by chunk, each with some of the entries.
        vocab_chunk: the number of vocabulary entries whose logits are computed at a time; the backward pass computes
            them again. None: all.
        capture: as in `forward`; the result is then a pair, of the scores and the activations.

    Raises:
        ValueError: fewer than two tokens, and everything that `forward` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, 0)
    >>> score(params, config, [3, 1, 4]).shape
    (2,)
    >>> packed = score(params, config, [3, 1, 4, 3, 1], segments=[0, 0, 0, 1, 1])
    >>> bool(packed[2] == 0), bool(jnp.allclose(packed[0], packed[3]))
    (True, True)
    """
    tokens, segments, vocab_chunk = _check(params, config, tokens, segments, edit, vocab_chunk, compute)  # fmt: skip
    capture = check_capture(capture, config, compute)
    run = compiled(_score, edit, static=("capture", "vocab_chunk"))
    scores, activations = run(
        params, config, tokens, segments, compute, capture=capture, vocab_chunk=vocab_chunk
    )
    return (scores, activations) if capture else scores


def loss(
    params: Params, config: Config, tokens: Integers, *,
    segments: Integers | None = None, edit: Edit = identity, vocab_chunk: int | None = None,
    compute: Compute = Compute(),
) -> Float[Array, ""]:  # fmt: skip
    """Return the mean cross-entropy of the next token, in nats: the mean of `-score` over the tokens that have one.

    The arguments and errors are those of `score`. For the mean over sequences that have different numbers of targets,
    divide the sum of their scores.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, 0)
    >>> value, gradient = jax.value_and_grad(loss)(params, config, jnp.array([3, 1, 4]))
    >>> value.shape, gradient.W_E.shape
    ((), (5, 8))
    """
    tokens, segments, vocab_chunk = _check(params, config, tokens, segments, edit, vocab_chunk, compute)  # fmt: skip
    run = compiled(_loss, edit, static=("vocab_chunk",))
    return run(params, config, tokens, segments, compute, vocab_chunk=vocab_chunk)


def perplexity(
    params: Params, config: Config, tokens: Integers, *,
    segments: Integers | None = None, edit: Edit = identity, vocab_chunk: int | None = None,
    compute: Compute = Compute(),
) -> Float[Array, ""]:  # fmt: skip
    """Return exp(loss): the number of equally likely tokens that would surprise as much."""
    options: Any = {"segments": segments, "vocab_chunk": vocab_chunk, "compute": compute}
    return jnp.exp(loss(params, config, tokens, edit=edit, **options))


def _check(
    params: Any, config: Any, tokens: Any, segments: Any, edit: Any, vocab_chunk: Any, compute: Compute
) -> tuple[Any, Any, int | None]:  # fmt: skip
    """Check a call; return the tokens and the segments as arrays, and vocab_chunk as a Python int."""
    given = Inputs(tokens, None, None, segments)
    inputs, _ = check_inputs(params, config, given, (), edit, compute, unread=1)
    if len(inputs.tokens) < 2:
        raise ValueError(
            f"tokens holds {len(inputs.tokens)} tokens; give at least two: the first has no score"
        )
    if vocab_chunk is not None:
        vocab_chunk = positive_integer("vocab_chunk", vocab_chunk)
    return inputs.tokens, inputs.segments, vocab_chunk


def _score(
    edit: EditFunction, params: Params, config: Config, tokens: Array, segments: Array | None, compute: Compute, *,
    capture: tuple[str, ...], vocab_chunk: int | None,
) -> tuple[Scores, dict[str, Array]]:  # fmt: skip
    labels = tokens[1:]
    # Comparing in a narrow dtype, or indexing with a wide one, would wrap.
    wide = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
    labels = jnp.where((wide >= 0) & (wide < config.n_vocab), wide.astype(jnp.int32), -1)
    read = Inputs(tokens[:-1], None, None, None if segments is None else segments[:-1])
    if vocab_chunk is None or vocab_chunk >= config.n_vocab:
        out = run_model(edit, params, config, read, compute, capture=capture)
        scores = _log_probs(out.logits, labels)
    else:
        out = run_model(edit, params, config, read, compute, capture=(*capture, "final"))
        scores = -_in_chunks(params, config, out.activations["final"], labels, edit, vocab_chunk)
    if segments is not None:
        scores = jnp.where(has_score(segments), scores, 0.0)
    return scores, {site: out.activations[site] for site in capture}


def _loss(
    edit: EditFunction, params: Params, config: Config, tokens: Array, segments: Array | None, compute: Compute, *,
    vocab_chunk: int | None,
) -> Float[Array, ""]:  # fmt: skip
    static: Any = {"capture": (), "vocab_chunk": vocab_chunk}
    scores, _ = _score(edit, params, config, tokens, segments, compute, **static)
    if segments is None:
        return -scores.mean()
    return -scores.sum() / jnp.maximum(has_score(segments).sum(), 1).astype(scores.dtype)


def has_score(segments: Integer[Array, " t"]) -> Bool[Array, " targets"]:
    """Say which tokens have a score: those that follow a token of their own document, and are not padding."""
    return (segments[1:] == segments[:-1]) & (segments[1:] >= 0)


def _log_probs(logits: Float[Array, "t v"], labels: Int[Array, " t"]) -> Float[Array, " t"]:
    """Return log softmax(logits)[label]; NaN for a label outside the vocabulary."""
    shifted = logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    of_label = shifted.at[jnp.arange(len(labels)), labels]
    of_label = of_label.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return of_label - jnp.log(jnp.exp(shifted).sum(axis=-1))


def _in_chunks(
    params: Params,
    config: Config,
    final: Float[Array, "t d"],
    labels: Int[Array, " t"],
    edit: EditFunction,
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
