"""The rest of a pass, from the stream before a layer on: where sweeps, which change one layer after another, begin."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxformer.config import Compute, Config
from jaxformer.params import Params
from jaxformer.sites import ASKED, Edit, Layer, Site, Tap, check_edit, keep, position_axis
from jaxformer.stream import pick
from jaxformer.transformer import block, check_read, unembed


def forward_from(
    params: Params,
    config: Config,
    state: Float[Array, "t d"],
    layer: Int[Array, ""] | int,
    *,
    edit: Edit = keep,
    read: Int[Array, " r"] | None = None,
    narrow: bool = False,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, "r v"]:
    """The logits of the rest of a pass: from a layer's `resid_pre` on, whose number may be traced.

    The layers before it are not run, so a sweep that changes one layer after another costs half. Reverse-mode
    derivatives need a layer that is not traced, for the number of turns of the loop is that of the layers.

    Args:
        params: as `init` gives them, with stacked layers.
        config: their architecture.
        state: what `forward` captures as resid_pre of that layer.
        layer: where to go on; n_layers: only unembed.
        edit: as in `forward`; of earlier layers it sees nothing.
        read: as in `forward`.
        narrow: in the last layer, leave out what no place in `read` has need of: there only those states ask,
            and have neurons. For an edit that changes each position by itself, as those do that put in, add or
            take out values: at other positions of the last layer it is given zeros, and what it makes of them
            is not used. The pass then goes on from before the last layer, or at it.
        compute: how to run it; unroll and remat have no say here.

    Raises:
        ValueError: unstacked parameters; narrow without read.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("resid_pre",))
    >>> rest = forward_from(params, config, out.activations["resid_pre"][1], 1)
    >>> bool(jnp.allclose(rest, out.logits, atol=1e-5))
    True
    """
    if isinstance(params.blocks, list):
        raise ValueError("forward_from takes stacked layers, as init gives them")
    check_edit(edit, config, compute)
    dtype = jnp.dtype(compute.dtype or params.W_E.dtype)
    params = jax.tree.map(lambda array: array.astype(dtype), params)
    positions = jnp.arange(len(state), dtype=jnp.int32)

    def turn(index: Array, state: Array) -> Array:
        own = jax.tree.map(lambda stacked: stacked[index], params.blocks)
        tap = Tap((), edit, index.astype(jnp.int32))
        return block(own, config, state, positions, None, tap=tap, compute=compute)[0]

    whole = Tap((), edit)
    if read is not None:
        read = check_read(read, len(state))
    if not narrow:
        state = jax.lax.fori_loop(layer, config.n_layers, turn, state.astype(dtype))
        return unembed(params, config, state if read is None else pick(state, read), whole)
    if read is None:
        raise ValueError("narrow=True needs read: the places that the last layer is computed for")
    last = config.n_layers - 1
    state = jax.lax.fori_loop(layer, last, turn, state.astype(dtype))
    own = jax.tree.map(lambda stacked: stacked[last], params.blocks)
    tap = Tap((), spread(edit, read, len(state)), jnp.int32(last))
    state = block(own, config, state, positions, None, tap=tap, compute=compute, at=read)[0]
    return unembed(params, config, state, whole)


def spread(edit: Edit, places: Int[Array, " r"], length: int) -> Edit:
    """The same edit for a layer in which only these places ask: it is given zeros for the others."""

    def narrow(site: Site, layer: Layer, value: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        if str(site) in ASKED:
            return edit(site, layer, value)
        axis = position_axis(str(site))
        rows = jnp.moveaxis(value, axis, 0)
        zeros = jnp.zeros((length, *rows.shape[1:]), value.dtype)
        full = jnp.moveaxis(zeros.at[places].set(rows), 0, axis)
        edited = edit(site, layer, full)
        if edited is full:
            return value
        return jnp.take(edited, places, axis, mode="fill")

    return narrow
