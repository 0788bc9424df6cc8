"""The forward pass as a function of changes at its sites: what derivatives between sites are taken of."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.edits import check_capture
from jaxformer.model.checks import stacked
from jaxformer.model.params import Params
from jaxformer.model.remat import rematerialised
from jaxformer.model.stream import take_positions
from jaxformer.model.tap import Tap, compiled
from jaxformer.model.transformer import Output, block, embed, forward, unembed
from jaxformer.sites import MODEL_SITES, Edit, EditFunction, Layer, identity

Shapes = dict[str, jax.ShapeDtypeStruct]


def perturbed(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    changes: Mapping[str, Float[Array, "..."]],
    *,
    capture: Iterable[str] = (),
    edit: Edit = identity,
    logits_at: Int[Array, " r"] | None = None,
    compute: Compute = Compute(),
) -> Output:
    """Run `forward` with a change added at some of its sites, so that the result can be differentiated by the changes.

    Changes have the layout of forward's activations, with layers stacked in front; the scan over layers gives each
    layer its slice. An edit that indexes the stack would be correct too, but the gradient of indexing is another
    full-size stack, mostly zeros, for every layer.

    This function runs the layers itself because `forward` takes no such slices; a test checks that the two agree. A
    change is added after the edit, so its derivative is that of the edited value. The arguments are not checked here;
    `site_shapes` checks them.
    """
    run = compiled(_perturbed, edit, static=("capture",))
    return run(params, config, tokens, dict(changes), logits_at, compute, capture=tuple(capture))


def _perturbed(
    edit: EditFunction,
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    changes: dict[str, Float[Array, "..."]],
    logits_at: Int[Array, " r"] | None,
    compute: Compute,
    *,
    capture: tuple[str, ...],
) -> Output:
    dtype = jnp.dtype(compute.dtype or params.W_E.dtype)
    params = jax.tree.map(lambda array: array.astype(dtype), params)

    def new_tap(layer: Layer, changes: dict[str, Array]) -> Tap:
        def changed(site: str, layer: Layer, value: Array) -> Array:
            value = edit(site, layer, value)
            return value + changes[site] if site in changes else value

        return Tap(capture, changed, layer, compute.saved)

    def step(state: Array, inputs: tuple[Array, Any, dict[str, Array]]) -> tuple[Array, Any]:
        layer, params, changes = inputs
        tap = new_tap(layer, changes)
        state = block(params, config, state, layer=layer, tap=tap, compute=compute)
        return state, tap.captured

    outer = new_tap(None, {site: value for site, value in changes.items() if site in MODEL_SITES})
    state = embed(params, config, tokens, tap=outer)
    layers = jnp.arange(config.n_layers, dtype=jnp.int32)
    stacks = {site: value for site, value in changes.items() if site not in MODEL_SITES}
    if compute.remat != "none":
        step = rematerialised(step, config, compute)
    state, captured = jax.lax.scan(
        step, state, (layers, params.blocks, stacks), unroll=compute.unroll
    )
    if logits_at is not None:
        state = take_positions(state, logits_at)
    return Output(unembed(params, config, state, tap=outer), outer.captured | captured, None)


def site_shapes(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    sites: Iterable[str],
    *,
    edit: Edit = identity,
    logits_at: Int[Array, " r"] | None = None,
    compute: Compute = Compute(),
) -> Shapes:
    """Return the shapes that `forward` would capture at some sites, without computing them. Checks all arguments.

    Raises:
        ValueError: as `forward`; sites given as one string; unstacked layers.
    """
    if isinstance(sites, str):
        raise ValueError(f"sites={sites!r} is one string; give a tuple of sites: ({sites!r},)")
    sites = tuple(sites)
    check_capture(sites, config, compute)
    stacked(params, config)
    options: Any = {"capture": sites, "edit": edit, "logits_at": logits_at, "compute": compute}
    # The tokens are closed over, not passed in: forward checks concrete tokens more closely than traced ones.
    return jax.eval_shape(lambda: forward(params, config, tokens, **options)).activations
