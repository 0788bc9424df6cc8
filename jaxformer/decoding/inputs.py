"""The inputs of generation, checked: prompts of any lengths in one array, stop sequences in another."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxformer.checks import check_vocabulary
from jaxformer.config import Config

NO_TOKEN = -1
"""The padding of a generated sequence after its end, and of a short stop sequence in front."""


class Prompts(NamedTuple):
    """A batch of prompts, padded at the end to one length."""

    tokens: Any  # Int[Array, "b t"]; NumPy unless traced: preparing them op by op in JAX takes milliseconds
    lengths: Any  # Int[Array, "*b"]; a scalar if all prompts have the same length
    longest: int
    single: bool  # the caller gave one prompt without a batch axis


def bucket(length: int) -> int:
    """Round a length up to a power of two, at least 16, so that a few compiled programs serve all lengths.

    >>> bucket(5), bucket(16), bucket(17)
    (16, 16, 32)
    """
    return max(16, 1 << (length - 1).bit_length())


def gather(prompt: Any, config: Config) -> Prompts:
    """Put one prompt, or several, into one array.

    Raises:
        ValueError: no prompt, an empty prompt, tokens that are not integers, or a token outside the vocabulary.
    """
    if isinstance(prompt, str):
        raise ValueError("the prompt is text; give its ids: tokenizer.encode(prompt)")
    ragged = isinstance(prompt, list | tuple) and any(np.ndim(one) for one in prompt)
    if ragged:
        each, single = [_ids(one, config) for one in prompt], False
        if wrong := [one.shape for one in each if one.ndim != 1]:
            raise ValueError(
                f"each prompt of a list must be one sequence of ids, not an array of shape {wrong[0]}"
            )
    else:
        ids = _ids(prompt, config)
        each, single = [ids], ids.ndim == 1
    lengths = [one.shape[-1] for one in each]
    longest = max(lengths)
    width = bucket(longest)
    if config.max_length is not None:  # a position beyond the table would embed as NaN
        width = max(min(width, config.max_length), longest)
    numpy: Any = jnp if any(isinstance(one, jax.core.Tracer) for one in each) else np
    rows = [numpy.atleast_2d(one).astype(np.int32) for one in each]
    # Pad with the prompt's own last token: the embedding of another may be NaN, which no mask stops.
    padded = [numpy.pad(row, ((0, 0), (0, width - row.shape[1])), mode="edge") for row in rows]
    equal = len(set(lengths)) == 1
    counted = np.asarray(longest if equal else lengths, np.int32)
    return Prompts(numpy.concatenate(padded), counted, longest, single)


def _ids(prompt: Any, config: Config) -> Any:
    """Return one prompt, or a rectangular batch of them, as a checked array of token ids."""
    traced = isinstance(prompt, jax.core.Tracer)
    ids = prompt if traced else np.asarray(prompt)
    if not ids.size:
        raise ValueError("the prompt is empty; give at least one token")
    if ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"a prompt of shape {ids.shape} and dtype {ids.dtype} is not a sequence of token ids"
        )
    if not traced:
        check_vocabulary(ids, config.n_vocab)
    return ids


def check_room(config: Config, longest: int, n_tokens: int) -> None:
    """Refuse more tokens than the position table holds.

    Raises:
        ValueError: naming the numbers.
    """
    # The last token is sampled but never read, so it takes no position.
    if config.max_length is not None and longest + n_tokens - 1 > config.max_length:
        most = config.max_length - longest + 1
        repair = f"generate at most {most}" if most > 0 else "give a shorter prompt"
        raise ValueError(
            f"a prompt of {longest} tokens and n_tokens={n_tokens} do not fit into the position table's "
            f"n_context={config.max_length}; {repair}, or use stream_tokens, which drops the oldest tokens"
        )


def gather_stops(stop: Any, config: Config) -> Int[np.ndarray, "stops length"]:
    """Put the stop sequences into one array, a row each; short ones are padded in front.

    Raises:
        ValueError: text, an empty sequence, or a token outside the vocabulary.
    """
    if stop is None:
        return np.full((0, 1), NO_TOKEN, np.int32)
    if isinstance(stop, str):
        raise ValueError(f"stop={stop!r} is text; give its ids: tokenizer.encode({stop!r})")
    listed = isinstance(stop, list | tuple)
    several = any(np.ndim(one) for one in stop) if listed else np.ndim(stop) > 1
    rows = [np.atleast_1d(np.asarray(one)) for one in (stop if several else [stop])]
    for row in rows:
        if row.ndim != 1 or not row.size or not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"stop={stop!r} must be a token id, a sequence of them, or several")
        check_vocabulary(row, config.n_vocab)
    if not rows:
        raise ValueError("stop holds no sequence; leave it out to generate all n_tokens")
    widest = max(map(len, rows))
    padded = [np.pad(row, (widest - len(row), 0), constant_values=NO_TOKEN) for row in rows]
    return np.stack(padded).astype(np.int32)
