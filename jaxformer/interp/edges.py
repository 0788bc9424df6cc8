"""Edge attribution patching: which sender's output matters to which receiver, to first order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.interp.attribution import Gradients, along_line, check_pair, difference, gradients
from jaxformer.interp.metric import Metric
from jaxformer.interp.nodes import Node, edge_mask, receivers, senders
from jaxformer.model.attention import write_heads
from jaxformer.model.checks import stacked
from jaxformer.model.norm import normalize
from jaxformer.model.params import Block, Norm, Params
from jaxformer.model.stream import einsum_f32
from jaxformer.model.transformer import forward
from jaxformer.sites import Edit, identity

__all__ = ["Node", "edge_attribution", "edge_mask", "receivers", "senders"]


def edge_attribution(
    params: Params,
    config: Config,
    clean: Int[Array, " t"],
    corrupted: Int[Array, "_"],  # check_pair refuses another length with a clear message
    metric: Metric,
    *,
    steps: int = 1,
    logits_at: Int[Array, " r"] | None = None,
    compute: Compute = Compute(),
) -> Float[Array, "senders receivers"]:
    """Estimate the effect on the metric of patching one sender's clean output into one receiver's input.

    The estimate is Σ_td (clean - corrupted output of the sender) · (gradient of the metric at the receiver's input), to
    first order. The input is the stream before the receiver's norm. Its gradient passes through that norm at the
    corrupted run, so a change that the norm undoes, such as a longer stream, counts for nothing. All edges come from
    two forward passes and one backward pass. Where a norm follows attention (`Config.norm_place`), a head's output also
    passes through the derivative of that norm.

    The result has a row per sender and a column per receiver, in the order of `senders` and `receivers`. It is 0 where
    `edge_mask` has no edge (`path_patch` has NaN there, because its columns do not sum). A column sums to the estimate
    for all of the receiver's input; with a norm after attention only to first order. There is no `edit`: an edit of a
    receiver's norm or query would be left out of the gradients.

    Args:
        params: as `init` returns them, with stacked layers.
        clean: tokens of the run to patch from; `jax.vmap` over both gives a batch.
        corrupted: tokens of the run to patch, of the same length.
        metric: as in `gradients`.
        steps: as in `attribution_patch`; each step computes norms at its own point of the line.
        logits_at: as in `forward`.

    Raises:
        ValueError: as `attribution_patch`.

    Source: Syed, Rager & Conmy 2023, "Attribution Patching Outperforms Automated Circuit Discovery", §3;
    steps: Hanna, Pezzelle & Belinkov 2024, "Have Faith in Faithfulness", §3.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> scores = edge_attribution(params, config, jnp.array([3, 1, 4]), jnp.array([2, 1, 4]),
    ...                           lambda logits: logits[-1, 2])
    >>> scores.shape == (len(senders(config)), len(receivers(config)))
    True
    """
    stacked(params, config)
    clean, corrupted = jnp.asarray(clean), jnp.asarray(corrupted)
    check_pair(clean, corrupted, steps)
    dtype = jnp.dtype(compute.dtype or params.W_E.dtype)
    cast = jax.tree.map(lambda array: array.astype(dtype), params)
    written = ("embed", "z", "mlp_out") if config.d_mlp else ("embed", "z")

    def captured(tokens: Int[Array, " t"]) -> dict[str, Array]:
        return forward(params, config, tokens, capture=written, compute=compute).activations

    def changes(base: dict[str, Array]) -> Float[Array, "senders t d"]:
        base = {site: base[site] for site in written}
        return _changes(cast, config, difference(clean, corrupted, captured(clean), base))

    def run(edit: Edit, sites: tuple[str, ...]) -> Gradients:
        options: Any = {"edit": edit, "logits_at": logits_at, "compute": compute}
        return gradients(params, config, corrupted, metric, sites, **options)

    if steps == 1:
        _, values, grads = run(identity, (*written, *_sites(config)))
        scores = _scores(cast, config, changes(values), values, grads)
    else:
        fixed = changes(captured(corrupted))

        def scores_at(edit: Edit) -> Float[Array, "senders receivers"]:
            _, values, grads = run(edit, _sites(config))
            return _scores(cast, config, fixed, values, grads)

        scores = along_line(params, config, clean, corrupted, steps, identity, scores_at)
    return jnp.where(edge_mask(config), scores, jnp.zeros_like(scores))


def _sites(config: Config) -> tuple[str, ...]:
    """Return the sites whose values or gradients `_scores` needs."""
    mlp = ("pre",) if config.d_mlp else ()
    mlp += ("pre_linear",) if config.gated else ()
    mlp += ("resid_mid",) if config.d_mlp and not config.parallel else ()
    heads = ("z",) if config.has_norm("after") else ()
    return ("embed", "resid_pre", "q", "k", "v", *heads, *mlp, "resid_post")


def _changes(
    params: Params, config: Config, moved: dict[str, Array]
) -> Float[Array, "senders t d"]:
    """Return the change of every sender's output; for a head, before the norm that may follow attention."""
    embed = moved["embed"]
    each = einsum_f32("ltnh,lnhd->lntd", moved["z"], params.blocks.attn.W_O).astype(embed.dtype)
    if config.d_mlp:
        each = jnp.concatenate([each, moved["mlp_out"][:, None]], axis=1)
    return jnp.concatenate([embed[None], each.reshape(-1, *embed.shape)])


def _through_post_norm(
    params: Params, config: Config, changes: Float[Array, "senders t d"], values: dict[str, Array]
) -> Float[Array, "senders t d"]:
    """Pass the heads' changes through the derivative of the norm after attention, if there is one."""
    if params.blocks.attn_post_norm is None or not config.n_layers:
        return changes
    embed, (_, t, d) = changes[:1], changes.shape
    each = changes[1:].reshape(config.n_layers, -1, t, d)
    heads, rest = each[:, : config.n_heads], each[:, config.n_heads :]

    def layer(inputs: tuple[Block, Array, Array]) -> Float[Array, "n t d"]:
        block, z, heads = inputs
        total = write_heads(block.attn, z)

        def norm(state: Float[Array, "t d"]) -> Float[Array, "t d"]:
            return normalize(block.attn_post_norm, config, state)

        return jax.vmap(lambda change: jax.jvp(norm, (total,), (change,))[1])(heads)

    heads = jax.lax.map(layer, (params.blocks, values["z"], heads.astype(values["z"].dtype)))
    return jnp.concatenate([embed, jnp.concatenate([heads, rest], axis=1).reshape(-1, t, d)])


def _scores(
    params: Params,
    config: Config,
    changes: Float[Array, "senders t d"],
    values: dict[str, Array],
    grads: dict[str, Array],
) -> Float[Array, "senders receivers"]:
    """Multiply every sender's change with the gradient at every receiver's input, one layer of receivers at a time."""
    changes = _through_post_norm(params, config, changes, values)

    def times(grad: Float[Array, "t d"]) -> Float[Array, " senders"]:
        return einsum_f32("...td,td->...", changes, grad)

    if not config.n_layers:
        return times(grads["embed"])[:, None]

    def layer(inputs: tuple[Block, Any, Any]) -> Float[Array, "senders receivers"]:
        return jax.vmap(times, out_axes=1)(_input_gradients(config, *inputs))

    by_layer = [
        {site: each for site, each in arrays.items() if site != "embed"}
        for arrays in (values, grads)
    ]
    each = jax.lax.map(layer, (params.blocks, *by_layer))
    final = times(grads["resid_post"][-1])[:, None]
    return jnp.concatenate([each.transpose(1, 0, 2).reshape(len(changes), -1), final], axis=1)


def _input_gradients(
    config: Config, block: Block, values: dict[str, Array], grads: dict[str, Array]
) -> Float[Array, "receivers t d"]:
    """Return the metric's gradient at the input of each receiver of one layer, as if each had its own input."""
    weights = (block.attn.W_Q, block.attn.W_K, block.attn.W_V)
    read = [
        einsum_f32("tnh,dnh->ntd", grads[site], W)
        for site, W in zip(("q", "k", "v"), weights, strict=True)
    ]
    stream = values["resid_pre"]
    back = _norm_vjp(block.attn_norm, config, stream)
    inputs = jax.vmap(back)(jnp.concatenate(read).astype(stream.dtype))
    if block.mlp is None:
        return inputs
    # The site pre of a gated MLP is the gate's pre-activation.
    gate = block.mlp.W_in if block.mlp.W_gate is None else block.mlp.W_gate
    read = einsum_f32("tf,df->td", grads["pre"], gate)
    if block.mlp.W_gate is not None:
        read += einsum_f32("tf,df->td", grads["pre_linear"], block.mlp.W_in)
    stream = values["resid_pre" if config.parallel else "resid_mid"]
    back = _norm_vjp(block.mlp_norm, config, stream)
    return jnp.concatenate([inputs, back(read.astype(stream.dtype))[None]])


def _norm_vjp(
    norm: Norm | None, config: Config, stream: Float[Array, "t d"]
) -> Callable[[Float[Array, "t d"]], Float[Array, "t d"]]:
    """Return the function from a gradient at a norm's output to the gradient at its input."""
    _, back = jax.vjp(lambda state: normalize(norm, config, state), stream)
    return lambda grad: back(grad)[0]
