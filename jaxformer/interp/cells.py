"""The engine of sweeps: many changed passes of one model, in one compiled program, within a budget of memory."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.params import Params, check_params, count
from jaxformer.sites import READ, Edit, keep
from jaxformer.transformer import check_vocabulary, forward

Metric = Callable[[Any], Any]
"""From logits `t v`, or `b t v` of a batch, to one number."""
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class How:
    """What a sweep is compiled for."""

    config: Config
    metric: Metric
    single: bool
    """one sequence, whose logits the metric gets without an axis b"""
    compute: Compute


class Chunk(NamedTuple):
    """Cells that go on from one layer, computed side by side; filled up by repeating the last."""

    layer: int
    cells: Int[np.ndarray, "c k"]
    real: int


def check_door(params: Params, clean: Any, corrupted: Any, config: Config) -> tuple[Array, Array]:
    """The two runs' tokens, as batches `b t`.

    Raises:
        ValueError: parameters of another model, or unstacked; tokens that are no integers, of different shapes, or
            outside the vocabulary.
    """
    if isinstance(params.blocks, list):
        raise ValueError("a sweep takes stacked layers, as init gives them")
    check_params(params, config)
    pair = jnp.asarray(clean), jnp.asarray(corrupted)
    for name, tokens in zip(("clean", "corrupted"), pair, strict=True):
        if tokens.ndim not in (1, 2) or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"{name} has shape {tokens.shape} and dtype {tokens.dtype}; give token ids [t] or [b t]"
            )
        if not tokens.size:
            raise ValueError(f"{name} holds no tokens; give at least one")
        if not isinstance(tokens, jax.core.Tracer):
            check_vocabulary(tokens, config.n_vocab)
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            f"clean has shape {pair[0].shape}, corrupted {pair[1].shape}; a patch needs two runs of one "
            "shape: choose texts of as many tokens"
        )
    return jnp.atleast_2d(pair[0]), jnp.atleast_2d(pair[1])


def measure(
    params: Params,
    config: Config,
    tokens: Int[Array, "*b t"],
    metric: Metric,
    *,
    edit: Edit = keep,
    read: Any = None,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, ""]:
    """A metric of one pass: what the numbers of a sweep are held against.

    Raises:
        ValueError: a metric that is no scalar, and all that `forward` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> measure(params, config, jnp.array([3, 1]), lambda logits: logits[-1, 4]).shape
    ()
    """
    tokens = jnp.asarray(tokens)

    def one(tokens: Array) -> Array:
        return forward(params, config, tokens, edit=edit, read=read, compute=compute).logits

    return scalar(metric, one(tokens) if tokens.ndim == 1 else jax.vmap(one)(tokens))


def scalar(metric: Metric, logits: Float[Array, "..."]) -> Float[Array, ""]:
    """The metric, held to being one number.

    Raises:
        ValueError: it is not.
    """
    value = metric(logits)
    if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise ValueError(
            f"the metric gives shape {jnp.shape(value)} and dtype {jnp.result_type(value)} for logits "
            f"{logits.shape}; it must give one floating number, say logits[-1, answer]"
        )
    return jnp.asarray(value)


@partial(jax.jit, static_argnames=("how", "sites"))
def show(
    params: Params,
    runs: tuple[Int[Array, "b t"], ...],
    read: Int[Array, " r"] | None,
    how: How,
    sites: tuple[tuple[str, ...], ...],
) -> tuple[dict[str, Array], ...]:
    """What each run shows at its own sites, the batch in front; the logits' sites at the places read."""

    def one(own: tuple[str, ...], tokens: Array) -> dict[str, Array]:
        # Where nobody looks at the logits, unembed one place.
        places = jnp.array([-1]) if read is None and not READ & set(own) else read
        out = forward(params, how.config, tokens, capture=own, read=places, compute=how.compute)
        return out.activations

    return tuple(jax.vmap(partial(one, own))(run) for own, run in zip(sites, runs, strict=True))


def chunks(groups: Sequence[tuple[int, Int[np.ndarray, "_ k"]]], most: int) -> list[Chunk]:
    """Each layer's cells in chunks of one size, at most `most`.

    >>> groups = [(0, np.zeros((5, 1), np.int32)), (1, np.zeros((2, 1), np.int32))]
    >>> [(chunk.layer, len(chunk.cells), chunk.real) for chunk in chunks(groups, 3)]
    [(0, 3, 3), (0, 3, 2), (1, 3, 2)]
    """
    largest = max(len(cells) for _, cells in groups)
    size = math.ceil(largest / math.ceil(largest / most))
    found = []
    for layer, cells in groups:
        for start in range(0, len(cells), size):
            own = cells[start : start + size]
            filled = np.concatenate([own, np.repeat(own[-1:], size - len(own), axis=0)])
            found.append(Chunk(layer, filled, len(own)))
    return found


def cells_at_once(how: How, tokens: Int[Array, "b t"], read: Any, memory: int, held: Any) -> int:
    """The cells that a budget of memory allows side by side, beside what is held all the time.

    Raises:
        ValueError: not even one.
    """
    batch, length = tokens.shape
    config, places = how.config, length if read is None else len(read)
    heads = (4 * config.n_heads + 4 * config.sizes["k"]) * config.d_head
    attention = heads + 3 * config.n_heads * length
    per_token = 8 * config.d_model + max(attention, (3 + config.gated) * config.d_mlp)
    itemsize = max([4, *(array.dtype.itemsize for array in jax.tree.leaves(held))])
    each = batch * (length * per_token + 2 * places * config.n_vocab) * itemsize
    fixed = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(held))
    if memory < fixed + each:
        raise ValueError(
            f"memory={memory} bytes are too few: what the two runs hold takes {fixed}, one cell about {each}; "
            f"give at least {fixed + each}, or shorter or fewer sequences"
        )
    return (memory - fixed) // each


def run_chunks(
    program: Callable[[Any, Any], Float[Array, "m c"]],
    todo: Sequence[Chunk],
    places: Int[np.ndarray, " cells"],
    shape: tuple[int, ...],
    *,
    progress: bool,
) -> Float[Array, "..."]:
    """All cells' numbers, each at its place in a flattened array of this shape, and NaN elsewhere.

    In one call; or chunk by chunk, where their progress is shown.
    """
    layers = np.array([chunk.layer for chunk in todo], np.int32)
    cells = np.stack([chunk.cells for chunk in todo])
    if progress:
        with _bar(len(todo)) as advance:
            done = []
            for i in range(len(todo)):
                done.append(jax.block_until_ready(program(layers[i : i + 1], cells[i : i + 1])))
                advance()
        values = jnp.concatenate(done)
    else:
        values = program(layers, cells)
    real = np.arange(cells.shape[1]) < np.array([[chunk.real] for chunk in todo])
    where = np.full(
        real.shape, math.prod(shape), np.int32
    )  # out of it, which drops a repeated cell
    where[real] = places
    return _placed(values, where, shape=shape)


@partial(jax.jit, static_argnames="shape")
def _placed(
    values: Float[Array, "m c"], where: Int[Array, "m c"], *, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    # One program, for a small sweep takes less time than several operations that are not compiled.
    return jnp.full(math.prod(shape), jnp.nan, values.dtype).at[where].set(values).reshape(shape)


def shows_progress(progress: bool | None, how: How, arrays: Any, cells: int, tokens: int) -> bool:
    """Whether to show a bar: where asked, or where it takes some seconds; never inside traced code."""
    if any(isinstance(array, jax.core.Tracer) for array in jax.tree.leaves(arrays)):
        return False
    return 2 * count(how.config) * cells * tokens > 2e12 if progress is None else progress


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("patching", total=total)
        yield lambda: shown.advance(task)
