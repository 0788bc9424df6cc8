"""Map components of the stream to logits. The final norm is not linear (though its centring is): which scale divides?

- **The component's own** (`logit_lens`): treat the component as a final stream. What would the model predict if it
  stopped here? Such logits do not sum to anything.
- **That of the stream** (`apply_norm`, `direct_logit_attribution`): divide by what the model divided by. How much of
  this logit did the component write? This map is linear, so the components sum exactly to the logit. It treats the
  scale as constant, although every component contributed to it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.checks import check_vocabulary
from jaxformer.config import Config
from jaxformer.interp.components import captured, check_layer, stream_at
from jaxformer.interp.engine.linear_norm import frozen, pulled_back
from jaxformer.model.checks import check_params, stacked
from jaxformer.model.norm import normalize
from jaxformer.model.params import Norm, Params
from jaxformer.model.stream import accumulation_dtype, einsum_f32, upcast
from jaxformer.model.tap import Tap
from jaxformer.model.transformer import unembed


def logit_lens(
    params: Params, config: Config, stack: Float[Array, "component t d"]
) -> Float[Array, "component t v"]:
    """Return the logits of each row as if it were the final stream: normed by its own scale, then unembedded.

    The last row of `accumulated_resid` gives the logits of the model.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> logit_lens(params, config, jnp.ones((3, 7, 8))).shape
    (3, 7, 5)
    """
    check_params(params, config)
    params = jax.tree.map(lambda array: array.astype(stack.dtype), params)
    return jax.vmap(lambda state: unembed(params, config, state))(stack)


def direct_logit_attribution(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    components: Float[Array, "component t d"],
    tokens: Int[Array, "*t"] | int,
    minus: Int[Array, "..."] | int | None = None,
) -> Float[Array, "component t"]:
    """Return how much of a token's logit each component wrote, with the scale of the final stream.

    The attributions of components that sum to the final stream, plus `final_bias`, sum to the logit; with a
    logit_soft_cap, to the logit before its cap. (TransformerLens's logit_attrs leaves out the final norm's weight and
    bias unless they are folded.)

    Args:
        activations: of one sequence, with final_scale (used if present) or resid_post.
        components: of the final stream, as `decompose_resid` returns them, at the positions of logits_at.
        tokens: one for all positions, or one for each.
        minus: attribute the logit of `tokens` minus the logit of these. An offset that all logits share drops out.

    Raises:
        ValueError: a site that was not captured, a token outside the vocabulary, lengths that differ.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; differences: Wang et
    al. 2022, "Interpretability in the Wild", §3.

    >>> import jaxformer
    >>> from jaxformer.interp.decompose import decompose_resid
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, norm="layer")
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]),
    ...                         capture=("embed", "attn_out", "mlp_out", "resid_post"))
    >>> parts = decompose_resid(params, config, out.activations)
    >>> wrote = direct_logit_attribution(params, config, out.activations, parts, 2)
    >>> wrote.shape, bool(jnp.allclose(wrote.sum(0), out.logits[:, 2], atol=1e-5))
    ((3, 3), True)
    """
    dtype, (_, t, d) = accumulation_dtype(components.dtype), components.shape
    directions = logit_directions(params, config, activations, tokens, minus)
    _check_positions(len(directions) if directions.ndim == 2 else t, t)
    directions = jnp.broadcast_to(directions.astype(dtype), (t, d))
    return einsum_f32("...td,td->...t", components.astype(dtype), directions)


def logit_directions(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    tokens: Int[Array, "*t"] | int,
    minus: Int[Array, "..."] | int | None = None,
) -> Float[Array, "*r d"]:
    """Return the direction whose product with a final state is a logit: the unembedding pulled back through the norm.

    There is one direction for each position, because the scale depends on the position; only one for a model without
    a norm and a single token. With a logit_soft_cap it gives the logit before its cap. `direct_logit_attribution`
    multiplies components by these and takes the same arguments; `neuron_results(onto=...)` does it for every neuron.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, norm="rms")
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("resid_post",))
    >>> towards = logit_directions(params, config, out.activations, 2)
    >>> logits = (out.activations["resid_post"][-1] * towards).sum(-1)
    >>> bool(jnp.allclose(logits, out.logits[:, 2], atol=1e-5))
    True
    """
    _check_tokens(tokens, minus)
    direction = _unembedding(params, config, tokens)
    if minus is not None:
        direction = direction - _unembedding(params, config, minus)
    if params.final_norm is None:
        return direction
    scale = _scale(params.final_norm, config, activations, config.n_layers, mlp_input=False)
    if direction.ndim == 2 and len(direction) != len(scale):
        wrong = f"{len(direction)} tokens for {len(scale)} positions"
        raise ValueError(f"{wrong}; give one token, or one for each position")
    return pulled_back(params.final_norm, config, direction, scale)


def final_bias(
    params: Params,
    config: Config,
    tokens: Int[Array, "*t"] | int,
    minus: Int[Array, "..."] | int | None = None,
) -> Float[Array, "*r"]:
    """Return the part of a token's logit (before any cap) that no component wrote: b_U and the final norm's bias.

    Raises:
        ValueError: a token outside the vocabulary, lengths that differ.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> final_bias(jaxformer.init(config, jax.random.key(0)), config, 2)
    Array(0., dtype=float32)
    """
    if minus is not None:
        _check_tokens(tokens, minus)
        return final_bias(params, config, tokens) - final_bias(params, config, minus)
    direction = _unembedding(params, config, tokens)
    bias = jnp.zeros(direction.shape[:-1], direction.dtype)
    if params.b_U is not None:
        bias = upcast(_entries(params.b_U, tokens))
    if params.final_norm is not None and params.final_norm.b is not None:
        bias = bias + einsum_f32("...d,d->...", direction, upcast(params.final_norm.b))
    return bias


def apply_norm(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    components: Float[Array, "component t d"],
    layer: int | None = None,
    *,
    mlp_input: bool = False,
) -> Float[Array, "component t d"]:
    """Return what each component contributes to the normed input of a layer, with the scale of the stream.

    Components that sum to the stream there sum to the normed state minus the norm's bias. (TransformerLens's
    apply_ln_to_stack assumes that the norm's weight is folded.)

    Args:
        activations: of one sequence, with the scale (attn_scale, mlp_scale or final_scale; used if present) or the
            stream (resid_pre, resid_mid or resid_post).
        components: of the stream at that layer.
        layer: the norm of this layer's attention; None: the final norm.
        mlp_input: the norm of this layer's MLP instead.

    Raises:
        ValueError: a layer out of range, a site that was not captured, components at other positions, unstacked layers.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, norm="rms")
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("embed", "resid_pre"))
    >>> apply_norm(params, config, out.activations, out.activations["embed"][None], 0).shape
    (1, 3, 8)
    """
    check_params(params, config)
    layer = check_layer(config, layer, mlp_input=mlp_input)
    norm = params.final_norm
    if layer < config.n_layers:
        block = jax.tree.map(lambda stack: stack[layer], stacked(params, config))
        norm = block.mlp_norm if mlp_input else block.attn_norm
    if norm is None:
        return components
    scale = _scale(norm, config, activations, layer, mlp_input=mlp_input)
    _check_positions(len(scale), components.shape[1])
    return frozen(norm, config, components, scale)


def _check_tokens(tokens: Any, minus: Any) -> None:
    shapes = {jnp.shape(ids) for ids in (tokens, minus) if ids is not None} - {()}
    if len(shapes) > 1:
        raise ValueError(
            f"tokens has shape {jnp.shape(tokens)}, minus {jnp.shape(minus)}; give equal shapes, or one token"
        )


def _check_positions(scales: int, components: int) -> None:
    if scales != components:
        raise ValueError(
            f"the components have {components} positions, the scale or the tokens have {scales}; "
            "give all for the same positions: those of logits_at=..., if the pass had it"
        )


def _scale(
    norm: Norm, config: Config, activations: Mapping[str, Array], layer: int, *, mlp_input: bool
) -> Float[Array, "t 1"]:
    """Return the scale that the norm divided by: the captured one, which an edit may have set, or else recomputed."""
    in_layer = layer < config.n_layers
    site = ("mlp_scale" if mlp_input else "attn_scale") if in_layer else "final_scale"
    if site in activations:
        value = captured(activations, site)[0]
        return value[layer] if in_layer else value
    tap, stream = Tap((site,)), stream_at(config, activations, layer, mlp_input=mlp_input)
    normalize(norm, config, stream, tap=tap, site=site)
    return tap.captured[site]


def _unembedding(params: Params, config: Config, tokens: Any) -> Float[Array, "*t d"]:
    """Return the columns of the unembedding for these tokens, as rows, in float32 or wider."""
    check_params(params, config)
    tokens = jnp.asarray(tokens)
    if tokens.ndim > 1 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens have shape {tokens.shape} and dtype {tokens.dtype}; give one id, or one for each position"
        )
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(np.atleast_1d(tokens), config.n_vocab)
    if params.W_U is None:
        return upcast(_entries(params.W_E, tokens))
    return upcast(jax.vmap(_entries, in_axes=(0, None), out_axes=-1)(params.W_U, tokens))


def _entries(table: Float[Array, "v *d"], tokens: Any) -> Float[Array, "..."]:
    """Take rows by token; NaN for a token outside the vocabulary, where indexing would clamp it."""
    rows = table.at[jnp.asarray(tokens)]
    return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
