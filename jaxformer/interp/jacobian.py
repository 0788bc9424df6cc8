"""How one place inside a pass moves another: derivatives between sites, whole or along a direction."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.interp.engine.parts import concrete, whole_numbers
from jaxformer.model.params import Params, stacked
from jaxformer.model.remat import rematerialised
from jaxformer.model.sites import SITES, WHOLE, Edit, Layer, Site, keep, position_axis
from jaxformer.model.stream import pick
from jaxformer.model.tap import Tap, check_capture
from jaxformer.model.transformer import Output, block, embed, forward, unembed

Place = tuple[str, int | None]
"""A site and its layer, -1 being the last; None at a site that belongs to no layer."""
Shapes = dict[str, jax.ShapeDtypeStruct]


def jvp_between(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    source: Place,
    target: Place,
    direction: Float[Array, "..."],
    *,
    source_position: Int[Array, ""] | int | None = None,
    target_position: Int[Array, ""] | int | None = None,
    edit: Edit = keep,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, "..."]:
    """How the target moves, per unit, when the source moves along a direction: J·direction.

    About the cost of two passes, whatever the sizes: the Jacobian itself is never formed.

    Args:
        tokens: one sequence; `jax.vmap` gives a batch.
        source: the earlier place, for example ("resid_pre", 2).
        target: the later place, for example ("logits", None).
        direction: of the source's shape, without its `t` where source_position is given.
        source_position: move only this position; it may be traced, and the result is NaN if it is not there.
        target_position: look only at this position; likewise.
        edit: as in `forward`; derivatives are those of the edited pass.

    Raises:
        ValueError: a place that this model lacks or that is not later, a direction of another shape.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> jvp_between(params, config, jnp.array([3, 1, 4]), ("resid_pre", 1), ("logits", None),
    ...             jnp.ones((3, 8))).shape
    (3, 5)
    """
    where = source, target, source_position, target_position
    moved, still = _between(params, config, tokens, *where, edit, compute)
    return jax.jvp(moved, (still,), (_like(direction, still, "source"),))[1]


def vjp_between(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    source: Place,
    target: Place,
    direction: Float[Array, "..."],
    *,
    source_position: Int[Array, ""] | int | None = None,
    target_position: Int[Array, ""] | int | None = None,
    edit: Edit = keep,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, "..."]:
    """The direction at the source that moves the target most along a direction: Jᵀ·direction.

    The transpose of `jvp_between`: `direction` has the target's shape, the result the source's. With a
    neuron's reading direction at the target, it says what that neuron looks for at the source.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> vjp_between(params, config, jnp.array([3, 1, 4]), ("embed", None), ("pre", 1),
    ...             jnp.ones(32), target_position=-1).shape
    (3, 8)
    """
    where = source, target, source_position, target_position
    moved, still = _between(params, config, tokens, *where, edit, compute)
    out, transpose = jax.vjp(moved, still)
    return transpose(_like(direction, out, "target"))[0]


def jacobian(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    source: Place,
    target: Place,
    *,
    source_position: Int[Array, ""] | int | None = None,
    target_position: Int[Array, ""] | int | None = None,
    edit: Edit = keep,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, "..."]:
    """The derivative of every coordinate of the target by every one of the source: target's axes, then source's.

    One product per coordinate of the smaller of the two, all at once: give positions to keep it small.
    The arguments are those of `jvp_between`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> jacobian(params, config, jnp.array([3, 1, 4]), ("resid_pre", 0), ("resid_post", -1),
    ...          source_position=0, target_position=2).shape
    (8, 8)
    """
    where = source, target, source_position, target_position
    moved, still = _between(params, config, tokens, *where, edit, compute)
    forwards = still.size <= jax.eval_shape(moved, still).size
    return (jax.jacfwd if forwards else jax.jacrev)(moved)(still)


def perturbed(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    changes: Mapping[str, Float[Array, "..."]],
    *,
    capture: Iterable[str] = (),
    edit: Edit = keep,
    read: Int[Array, " r"] | None = None,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Output:
    """The pass of `forward` with a change added at each of some sites: what to differentiate by.

    A change is laid out as forward's activations, layers stacked in front, and each layer of the loop is
    handed its own slice. An edit that picked its slice out of the stack would be as right, but the
    derivative of picking is a stack of zeros with one slice filled: at every layer one more of that size.

    It runs the layers itself, as `forward` does, for forward has no place for such slices; a test holds the two to
    be the same. A change comes after the edit, so that its derivative is that of the value that the pass goes on with.
    What is given is not checked here: `site_shapes` does that.
    """
    dtype = jnp.dtype(compute.dtype or params.W_E.dtype)
    params = jax.tree.map(lambda array: array.astype(dtype), params)
    positions = jnp.arange(len(tokens), dtype=jnp.int32)
    capture = tuple(capture)

    def new_tap(layer: Layer, own: dict[str, Array]) -> Tap:
        def moved(site: Site, layer: Layer, value: Array) -> Array:
            value = edit(site, layer, value)
            return value + own[str(site)] if str(site) in own else value

        return Tap(capture, moved, layer, compute.saved)

    def step(state: Array, layer: tuple[Array, Any, dict[str, Array]]) -> tuple[Array, Any]:
        index, own, moves = layer
        tap = new_tap(index, moves)
        state, _ = block(own, config, state, positions, None, layer=index, tap=tap, compute=compute)
        return state, tap.captured

    whole = new_tap(None, {site: value for site, value in changes.items() if site in WHOLE})
    state = embed(params, config, tokens, positions, whole)
    layers = jnp.arange(config.n_layers, dtype=jnp.int32)
    moves = {site: value for site, value in changes.items() if site not in WHOLE}
    step = rematerialised(step, config, compute)
    state, captured = jax.lax.scan(
        step, state, (layers, params.blocks, moves), unroll=compute.unroll
    )
    if read is not None:
        state = pick(state, read)
    return Output(unembed(params, config, state, whole), whole.captured | captured, None)


def site_shapes(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    sites: Iterable[str],
    *,
    edit: Edit = keep,
    read: Int[Array, " r"] | None = None,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Shapes:
    """What `forward` would capture at some sites, as shapes, with nothing computed; all input is checked.

    Raises:
        ValueError: as `forward`; sites given as one string; unstacked layers.
    """
    if isinstance(sites, str):
        raise ValueError(f"sites={sites!r} is one string; give a tuple of sites: ({sites!r},)")
    sites = tuple(sites)
    check_capture(sites, config, compute)
    stacked(params, config)
    options: Any = {"capture": sites, "edit": edit, "read": read, "compute": compute}
    # Closed over, not passed in: forward looks at concrete tokens more closely than at traced ones.
    return jax.eval_shape(lambda: forward(params, config, tokens, **options)).activations


def _between(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    source: Place,
    target: Place,
    source_position: Int[Array, ""] | int | None,
    target_position: Int[Array, ""] | int | None,
    edit: Edit,
    compute: Compute,
) -> tuple[Callable[[Array], Array], Array]:
    """The target as a function of what is added to the source, and the zero to add."""
    tokens = jnp.asarray(tokens)
    (site, layer), (end, last) = _place(source), _place(target)
    shapes = site_shapes(params, config, tokens, (site, end), edit=edit, compute=compute)
    first, later = _when(source, config), _when(target, config)
    if later < first:
        raise ValueError(f"the pass reaches {target} before {source}: nothing there moves it")
    axis, end_axis = position_axis(site), position_axis(end)
    for position in (source_position, target_position):
        _check_position(position, len(tokens))
    whole = jnp.zeros(shapes[site].shape, shapes[site].dtype)
    value = whole if layer is None else jnp.zeros(whole.shape[1:], whole.dtype)
    still = value if source_position is None else jnp.zeros_like(jnp.take(value, 0, axis))
    there = _there((source_position, target_position), len(tokens), still.dtype)

    def moved(change: Array) -> Array:
        if source_position is not None:
            here = (slice(None),) * axis + (source_position,)
            change = value.at[here].set(change)
        changes = {site: change if layer is None else whole.at[layer].set(change)}
        run = perturbed(params, config, tokens, changes, capture=(end,), edit=edit, compute=compute)
        out = run.activations[end]
        out = out if last is None else out[last]
        here = (slice(None),) * end_axis + (target_position,)
        return there * (out if target_position is None else out[here])

    return moved, still


def _place(place: Any) -> Place:
    """A site and a layer.

    Raises:
        ValueError: anything else; a traced layer, for the order of places must be known.
    """
    if not isinstance(place, tuple) or len(place) != 2:
        raise ValueError(f'{place!r} is no place; give a site and its layer, as ("resid_pre", 2)')
    layer = place[1]
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int | np.integer)):
        raise ValueError(f"layer={layer!r} for {place[0]!r} must be a whole number, or None")
    return place


def _when(place: Place, config: Config) -> tuple[int, int]:
    """A number that grows along the pass, first by layer and then by site within it."""
    site, layer = place
    if (layer is None) != (site in WHOLE):
        need = "belongs to no layer; give None" if site in WHOLE else "needs a layer"
        raise ValueError(f"layer={layer} for {site!r}, which {need}")
    if layer is None:
        return (-1 if "embed" in site else config.n_layers), SITES.index(site)
    if not -config.n_layers <= layer < config.n_layers:
        raise ValueError(f"layer={layer} for {site!r}, but there are {config.n_layers} layers")
    return layer % config.n_layers, SITES.index(site)


def _check_position(position: Any, length: int) -> None:
    if position is None:
        return
    if not whole_numbers(position, 0):
        raise ValueError(f"position {position!r} must be a whole number")
    for number in np.ravel(concrete(position)):
        if not -length <= number < length:
            raise ValueError(f"position {number} is not there: there are {length} tokens")


def _there(positions: Iterable[Any], length: int, dtype: Any) -> Any:
    """1, or NaN where a traced position is not there: indexing would take another, or none."""
    factor: Any = jnp.ones((), dtype)
    for position in positions:
        if isinstance(position, jax.core.Tracer):
            factor = jnp.where((-length <= position) & (position < length), factor, jnp.nan)
    return factor


def _like(direction: Any, value: Array, what: str) -> Array:
    direction = jnp.asarray(direction)
    if jnp.iscomplexobj(direction):
        raise ValueError(f"the direction is {direction.dtype}, the {what} {value.dtype}")
    if direction.shape != value.shape:
        raise ValueError(
            f"the direction has shape {direction.shape}, the {what} has {value.shape}; they must be equal"
        )
    return direction.astype(value.dtype)
