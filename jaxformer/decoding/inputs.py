"""What `generate` is asked: prompts of any lengths in one array, stop sequences in another, both checked."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxformer.checks import check_vocabulary
from jaxformer.config import Config

NO_TOKEN = -1
"""Where a sequence has stopped, and where a stop sequence is shorter than others."""


class Prompts(NamedTuple):
    """A batch, each prompt filled up behind; one length for all where they are equal."""

    tokens: Any  # Int[Array, "b t"]; of numpy where it can be: what is prepared op by op in JAX takes milliseconds
    lengths: Any  # Int[Array, "*b"]
    longest: int
    single: bool  # one prompt, not a batch of one


def bucket(length: int) -> int:
    """The next power of two, and at least 16: what lengths are rounded up to, so that few programs serve all.

    >>> bucket(5), bucket(16), bucket(17)
    (16, 16, 32)
    """
    return max(16, 1 << (length - 1).bit_length())


def gather(prompt: Any, config: Config) -> Prompts:
    """One prompt or several, as one array.

    Raises:
        ValueError: no prompt, an empty one, no integers, or a token outside the vocabulary.
    """
    if isinstance(prompt, str):
        raise ValueError("the prompt is text; give its ids: tokenizer.encode(prompt)")
    ragged = isinstance(prompt, list | tuple) and any(np.ndim(one) for one in prompt)
    if ragged:
        each, single = [_ids(one, config) for one in prompt], False
        if wrong := [one.shape for one in each if one.ndim != 1]:
            raise ValueError(
                f"each prompt of a list is one sequence of ids, not an array of shape {wrong[0]}"
            )
    else:
        whole = _ids(prompt, config)
        each, single = [whole], whole.ndim == 1
    lengths = [one.shape[-1] for one in each]
    longest = max(lengths)
    width = bucket(longest)
    if config.n_context is not None:  # rows that the position table lacks would be NaN
        width = max(min(width, config.n_context), longest)
    numpy: Any = jnp if any(isinstance(one, jax.core.Tracer) for one in each) else np
    rows = [numpy.atleast_2d(one).astype(np.int32) for one in each]
    # By their own last token: another's embedding may be NaN, and no mask stops that.
    padded = [numpy.pad(row, ((0, 0), (0, width - row.shape[1])), mode="edge") for row in rows]
    equal = len(set(lengths)) == 1
    counted = np.asarray(longest if equal else lengths, np.int32)
    return Prompts(numpy.concatenate(padded), counted, longest, single)


def _ids(prompt: Any, config: Config) -> Any:
    traced = isinstance(prompt, jax.core.Tracer)
    ids = prompt if traced else np.asarray(prompt)
    if not ids.size:
        raise ValueError("a prompt is empty; give at least one token to go on from")
    if ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"a prompt of shape {ids.shape} and dtype {ids.dtype} is no sequence of token ids"
        )
    if not traced:
        check_vocabulary(ids, config.n_vocab)
    return ids


def check_room(config: Config, longest: int, n_tokens: int) -> None:
    """Refuse more tokens than the position table holds.

    Raises:
        ValueError: naming the numbers.
    """
    # The last token is drawn and not read: it takes no position.
    if config.n_context is not None and longest + n_tokens - 1 > config.n_context:
        most = config.n_context - longest + 1
        remedy = f"ask for at most {most}" if most > 0 else "give a shorter prompt"
        raise ValueError(
            f"a prompt of {longest} tokens and n_tokens={n_tokens} do not fit into the position table's "
            f"n_context={config.n_context}; {remedy}, or let stream_tokens read the latest half anew"
        )


def check_key(key: Any, prompts: Prompts) -> Key[Array, "*b"]:
    """Refuse what is not one key, or one for each prompt.

    Raises:
        ValueError: no key of `jax.random.key`, or as many as there are no prompts.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError("key must be a key, or one for each prompt; make it by jax.random.key(0)")
    batch = len(prompts.tokens)
    if key.ndim and (prompts.single or key.shape != (batch,)):
        raise ValueError(f"{key.shape} keys do not fit {batch} prompts; give one, or one for each")
    return key


def check_edit_from(edit_from: Any, prompts: Prompts) -> None:
    """Refuse what is not the number of a generated token, or one for each prompt.

    Raises:
        ValueError: a number below 0, no whole one, or as many as there are no prompts.
    """
    first = edit_from if isinstance(edit_from, jax.Array) else np.asarray(edit_from)
    fits = first.ndim == 0 or first.shape == (len(prompts.tokens),)
    if not fits or not jnp.issubdtype(first.dtype, jnp.integer):
        raise ValueError(f"edit_from={edit_from!r} must be a whole number, or one for each prompt")
    if not isinstance(first, jax.core.Tracer) and (np.asarray(first) < 0).any():
        raise ValueError(f"edit_from={edit_from!r} must be at least 0, the first generated token")


def gather_stops(stop: Any, config: Config) -> Int[np.ndarray, "stops m"]:
    """The stop sequences as rows, shorter ones filled up in front.

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
        raise ValueError("stop holds no sequence; leave it out to go on to the end")
    widest = max(map(len, rows))
    filled = [np.pad(row, (widest - len(row), 0), constant_values=NO_TOKEN) for row in rows]
    return np.stack(filled).astype(np.int32)
