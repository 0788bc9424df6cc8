"""Derivatives between sites of a forward pass: Jacobians, and their products with a direction (JVP and VJP)."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.interp.engine.axes import are_integers, concrete
from jaxformer.interp.engine.perturb import perturbed, site_shapes
from jaxformer.model.checks import check_params
from jaxformer.model.params import Params
from jaxformer.sites import MODEL_SITES, SITES, Edit, identity, position_axis

Place = tuple[Any, ...]
"""(site, layer) or (site, layer, position). layer: -1 is the last, None for a site that belongs to no layer; position:
only there; it may be traced, and out of range the result is then NaN."""


def jvp_between(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    source: Place,
    target: Place,
    direction: Float[Array, "..."],
    *,
    edit: Edit = identity,
    compute: Compute = Compute(),
) -> Float[Array, "..."]:
    """Return J·direction: the change of the target per unit step of the source along a direction.

    It costs about two forward passes, whatever the sizes; the Jacobian is never formed.

    Args:
        tokens: one sequence; `jax.vmap` gives a batch.
        source: the earlier place, such as ("resid_pre", 2), or ("resid_pre", 2, 5) for position 5 alone.
        target: the later place, such as ("logits", None), or ("logits", None, -1).
        direction: of the source's shape, without its axis `t` if the source has a position.
        edit: as in `forward`; derivatives are those of the edited pass.

    Raises:
        ValueError: a site or layer that the model lacks, a target before the source, a direction of another shape.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> jvp_between(params, config, jnp.array([3, 1, 4]), ("resid_pre", 1), ("logits", None),
    ...             jnp.ones((3, 8))).shape
    (3, 5)
    """
    changed, zero = _between(params, config, tokens, source, target, edit, compute)
    return jax.jvp(changed, (zero,), (_check_direction(direction, zero, "source"),))[1]


def vjp_between(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    source: Place,
    target: Place,
    direction: Float[Array, "..."],
    *,
    edit: Edit = identity,
    compute: Compute = Compute(),
) -> Float[Array, "..."]:
    """Return Jᵀ·direction: the direction at the source that changes the target most along a given direction.

    This is the transpose of `jvp_between`, with the same arguments: `direction` has the target's shape, the result the
    source's. For the input weights of a neuron at the target, the result is what the neuron responds to at the source.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> vjp_between(params, config, jnp.array([3, 1, 4]), ("embed", None), ("pre", 1, -1),
    ...             jnp.ones(32)).shape
    (3, 8)
    """
    changed, zero = _between(params, config, tokens, source, target, edit, compute)
    out, transpose = jax.vjp(changed, zero)
    return transpose(_check_direction(direction, out, "target"))[0]


def jacobian(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    source: Place,
    target: Place,
    *,
    edit: Edit = identity,
    compute: Compute = Compute(),
) -> Float[Array, "..."]:
    """Return the derivative of every coordinate of the target by every coordinate of the source, in that order of axes.

    It computes one JVP or VJP per coordinate of the smaller of the two, all in one batch: give positions to keep it
    small. The arguments are those of `jvp_between`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> jacobian(params, config, jnp.array([3, 1, 4]), ("resid_pre", 0, 0), ("resid_post", -1, 2)).shape
    (8, 8)
    """
    changed, zero = _between(params, config, tokens, source, target, edit, compute)
    forward = zero.size <= jax.eval_shape(changed, zero).size
    return (jax.jacfwd if forward else jax.jacrev)(changed)(zero)


def _between(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    source: Place,
    target: Place,
    edit: Edit,
    compute: Compute,
) -> tuple[Callable[[Array], Array], Array]:
    """Return the target as a function of a change of the source, and the zero change."""
    check_params(params, config)
    tokens = jnp.asarray(tokens)
    (site, layer, at), (end, end_layer, end_at) = _check_place(source), _check_place(target)
    shapes = site_shapes(params, config, tokens, (site, end), edit=edit, compute=compute)
    if _order(target, config) < _order(source, config):
        raise ValueError(f"the pass reaches {target} before {source}; choose a later target")
    axis, end_axis = position_axis(site), position_axis(end)
    for position in (at, end_at):
        _check_position(position, len(tokens))
    stack = jnp.zeros(shapes[site].shape, shapes[site].dtype)
    value = stack if layer is None else jnp.zeros(stack.shape[1:], stack.dtype)
    zero = value if at is None else jnp.zeros_like(jnp.take(value, 0, axis))
    factor = _nan_outside((at, end_at), len(tokens), zero.dtype)

    def changed(change: Array) -> Array:
        if at is not None:
            here = (slice(None),) * axis + (at,)
            change = value.at[here].set(change)
        changes = {site: change if layer is None else stack.at[layer].set(change)}
        run = perturbed(params, config, tokens, changes, capture=(end,), edit=edit, compute=compute)
        out = run.activations[end]
        out = out if end_layer is None else out[end_layer]
        here = (slice(None),) * end_axis + (end_at,)
        return factor * (out if end_at is None else out[here])

    return changed, zero


def _check_place(place: Any) -> tuple[str, int | None, Any]:
    """Return a place's site, layer and position.

    Raises:
        ValueError: anything else; a traced layer, because the order of source and target must be known.
    """
    if not isinstance(place, tuple) or len(place) not in (2, 3):
        raise ValueError(
            f'{place!r} is not a place; give a site and its layer, such as ("resid_pre", 2), or also a position'
        )
    found: Any = (*place, None)
    site, layer, position = found[:3]
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int | np.integer)):
        raise ValueError(f"layer={layer!r} for {site!r} must be an integer, or None")
    return site, None if layer is None else int(layer), position


def _order(place: Place, config: Config) -> tuple[int, int]:
    """Return a place's order in the pass: its layer, then its site.

    Raises:
        ValueError: a layer for a site without layers, none for one with layers, or one out of range.
    """
    site, layer = place[:2]
    if (layer is None) != (site in MODEL_SITES):
        need = "belongs to no layer; give None" if site in MODEL_SITES else "needs a layer"
        raise ValueError(f"layer={layer} for {site!r}, which {need}")
    if layer is None:
        return (-1 if "embed" in site else config.n_layers), SITES.index(site)
    if not -config.n_layers <= layer < config.n_layers:
        raise ValueError(f"layer={layer} for {site!r}, but there are {config.n_layers} layers")
    return layer % config.n_layers, SITES.index(site)


def _check_position(position: Any, length: int) -> None:
    if position is None:
        return
    if not are_integers(position, max_axes=0):
        raise ValueError(f"position {position!r} must be an integer")
    for number in np.ravel(concrete(position)):
        if not -length <= number < length:
            raise ValueError(f"position {number} is out of range: there are {length} tokens")


def _nan_outside(positions: Iterable[Any], length: int, dtype: Any) -> Any:
    """Return 1, or NaN if a traced position is out of range, where indexing would clamp it or drop the update."""
    factor: Any = jnp.ones((), dtype)
    for position in positions:
        if isinstance(position, jax.core.Tracer):
            factor = jnp.where((-length <= position) & (position < length), factor, jnp.nan)
    return factor


def _check_direction(direction: Any, value: Array, what: str) -> Array:
    direction = jnp.asarray(direction)
    if jnp.iscomplexobj(direction):
        raise ValueError(f"the direction is {direction.dtype}, the {what} {value.dtype}")
    if direction.shape != value.shape:
        raise ValueError(
            f"the direction has shape {direction.shape}, the {what} has {value.shape}; they must be equal"
        )
    return direction.astype(value.dtype)
