"""A call of `generate`: the `Program` that it compiles (static), and its `Request` (traced)."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxformer.config import Compute, Config
from jaxformer.decoding.inputs import Prompts, gather_stops
from jaxformer.decoding.sampling import Sampling
from jaxformer.edits import check_capture
from jaxformer.sites import EditFunction, identity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The static arguments: another value of any of them compiles another program."""

    config: Config
    capture: tuple[str, ...]
    compute: Compute


class EditFrom(NamedTuple):
    """An edit, and the first position that it may change; None: 0."""

    edit: EditFunction = identity
    start: Int[Array, "*b"] | None = None


class Request(NamedTuple):
    """The traced arguments: they may differ between two calls of one program."""

    keys: Key[Array, "*b"]  # one per sequence, or one to fold with each sequence's index
    sampling: Sampling
    stops: Any  # Int[Array, "stops length"], short ones padded in front
    editing: EditFrom


def make_program(config: Config, capture: str | Iterable[str], compute: Compute) -> Program:
    """Check the static arguments and collect them.

    Raises:
        ValueError: a site that this model does not have.
    """
    return Program(config=config, capture=check_capture(capture, config, compute), compute=compute)


def make_request(
    config: Config, prompts: Prompts, key: Any, sampling: Sampling, stop: Any, edit_from: Any
) -> Request:
    """Check the traced arguments and collect them; the edit itself is added where the program is traced.

    Raises:
        ValueError: a key or a stop sequence that is not one, or a number out of range.
    """
    edit_start = None
    if edit_from is not None:
        check_edit_from(edit_from, prompts)
        edit_start = prompts.lengths - 1 + _small_int32(edit_from)
    return Request(
        keys=check_key(key, prompts),
        sampling=sampling.fitted(config),
        stops=gather_stops(stop, config),
        editing=EditFrom(start=edit_start),
    )


def with_edit(request: Request, edit: EditFunction) -> Request:
    """Return the request with an edit."""
    return request._replace(editing=request.editing._replace(edit=edit))


def check_key(key: Any, prompts: Prompts) -> Key[Array, "*b"]:
    """Refuse what is not one key, or one for each prompt.

    Raises:
        ValueError: a value that `jax.random.key` did not make, or a wrong number of keys.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            "key must be a random key, or one for each prompt; make it by jax.random.key(0)"
        )
    batch = len(prompts.tokens)
    if key.ndim and (prompts.single or key.shape != (batch,)):
        raise ValueError(f"{key.shape} keys do not fit {batch} prompts; give one, or one for each")
    return key


def check_edit_from(edit_from: Any, prompts: Prompts) -> None:
    """Refuse what is not the index of a generated token, or one index for each prompt.

    Raises:
        ValueError: a number that is not an integer or is below 0, or a wrong number of them.
    """
    first = edit_from if isinstance(edit_from, jax.Array) else np.asarray(edit_from)
    fits = first.ndim == 0 or first.shape == (len(prompts.tokens),)
    if not fits or not jnp.issubdtype(first.dtype, jnp.integer):
        raise ValueError(f"edit_from={edit_from!r} must be an integer, or one for each prompt")
    if not isinstance(first, jax.core.Tracer) and (np.asarray(first) < 0).any():
        raise ValueError(f"edit_from={edit_from!r} must be at least 0, the first generated token")


def _small_int32(number: Any) -> Any:
    """Return an int32 of at most 2**30, so that adding to a huge number, which stands for never, does not overflow."""
    most = 2**30
    if not isinstance(number, jax.core.Tracer):
        return np.minimum(np.asarray(number), most).astype(np.int32)
    number = number if number.dtype.itemsize >= 4 else number.astype(jnp.int32)
    return jnp.minimum(number, most).astype(jnp.int32)
