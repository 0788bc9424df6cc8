"""How a part of the stream reads in logits. There are two answers, for the final norm is not linear.

It divides by a scale that the whole state has, and a part can be divided by one of two:

- **its own** (`logit_lens`): the part is taken for a whole state. What would the model say if it stopped
  here? The rows of such logits do not add up to anything.
- **the whole stream's** (`apply_norm`, `direct_logit_attribution`): the part is divided by what the model
  divided by. How much of this logit did this part write? That map is linear, so the parts add up to the
  logit, exactly; but it takes the scale for given, which every part had a share in.

Both keep the centring of a layer norm, which is linear.
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
from jaxformer.interp.engine.frozen import frozen, taken_back
from jaxformer.model.norm import normalize
from jaxformer.model.params import Norm, Params, stacked
from jaxformer.model.stream import product, wide, widened
from jaxformer.model.tap import Tap
from jaxformer.model.transformer import unembed


def logit_lens(
    params: Params, config: Config, stack: Float[Array, "c t d"]
) -> Float[Array, "c t v"]:
    """What the model would say if each row were its final stream: normed by its own scale, then unembedded.

    The last row of `accumulated_resid` gives the model's own logits.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> logit_lens(params, config, jnp.ones((3, 7, 8))).shape
    (3, 7, 5)
    """
    params = jax.tree.map(lambda array: array.astype(stack.dtype), params)
    return jax.vmap(lambda state: unembed(params, config, state, Tap()))(stack)


def direct_logit_attribution(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    components: Float[Array, "c t d"],
    tokens: Int[Array, "*t"] | int,
    minus: Int[Array, "*m"] | int | None = None,
) -> Float[Array, "c t"]:
    """How much of a token's logit each component wrote, under the scale of the whole final stream.

    Linear: over components that sum to the final stream, the attributions and `final_bias` sum to the
    logit, or with a logit_cap to what the logit was before its cap. (TransformerLens's logit_attrs leaves the
    final norm's weight and bias out unless they are folded.)

    Args:
        activations: of one sequence, with resid_post in them, or with final_scale, which then counts.
        components: parts of the final stream, as `decompose_resid` gives them, at the positions read.
        tokens: one for all positions, or one for each.
        minus: attribute the logit of `tokens` less that of these. An offset that all logits share, which
            softmax does not see, drops out of such a difference.

    Raises:
        ValueError: a site that was not captured, a token outside the vocabulary, other lengths.

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
    dtype, (_, t, d) = wide(components.dtype), components.shape
    directions = logit_directions(params, config, activations, tokens, minus)
    if directions.ndim == 2:
        _check_places(len(directions), t)
    directions = jnp.broadcast_to(directions, (t, d)).astype(dtype)
    return product("ctd,td->ct", components.astype(dtype), directions)


def logit_directions(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    tokens: Int[Array, "*t"] | int,
    minus: Int[Array, "*m"] | int | None = None,
) -> Float[Array, "*r d"]:
    """What a state is multiplied with to give a logit: the unembedding taken back through the final norm.

    With a logit_cap that is the logit before its cap. One direction for each position, for the scale is a
    position's own; a single one where there is no norm and one token. `direct_logit_attribution` is the product with
    these; give them to `neuron_results(onto=...)` for that of every neuron.

    Args:
        activations: as in `direct_logit_attribution`.
        tokens: as there.
        minus: as there.

    Raises:
        ValueError: as there.

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
        raise ValueError(
            f"there are {len(direction)} tokens for {len(scale)} positions; give one, or one for each"
        )
    return taken_back(params.final_norm, config, direction, scale)


def final_bias(
    params: Params,
    config: Config,
    tokens: Int[Array, "*t"] | int,
    minus: Int[Array, "*m"] | int | None = None,
) -> Float[Array, "*r"]:
    """The part of a token's logit that no component wrote: the final norm's bias unembedded, plus b_U.

    With a logit_cap, of the logit before its cap. It is the same in every text. Zero in a model without these biases.

    Raises:
        ValueError: a token outside the vocabulary, other lengths.

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
        bias = widened(_entries(params.b_U, tokens))
    if params.final_norm is not None and params.final_norm.b is not None:
        bias = bias + product("...d,d->...", direction, widened(params.final_norm.b))
    return bias


def apply_norm(
    params: Params,
    config: Config,
    activations: Mapping[str, Array],
    components: Float[Array, "c t d"],
    layer: int | None = None,
    *,
    mlp_input: bool = False,
) -> Float[Array, "c t d"]:
    """What each component contributes to what a layer reads: centred, over the whole stream's scale, weighted.

    Linear: components that sum to the stream there sum to the normed state, less the norm's bias.
    (TransformerLens's apply_ln_to_stack, which takes the norm's weight to be folded.)

    Args:
        activations: of one sequence, with the stream there (resid_pre, resid_mid or resid_post), or with
            the scale itself (attn_scale, mlp_scale or final_scale), which then counts.
        components: parts of the stream there.
        layer: as its attention reads it; None: as the unembedding does.
        mlp_input: as the layer's MLP reads it.

    Raises:
        ValueError: a layer that is not there, a site that was not captured, components at other positions,
            unstacked parameters.

    >>> import jaxformer
    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5, norm="rms")
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1, 4]), capture=("embed", "resid_pre"))
    >>> apply_norm(params, config, out.activations, out.activations["embed"][None], 0).shape
    (1, 3, 8)
    """
    layer = check_layer(config, layer, mlp_input=mlp_input)
    norm = params.final_norm
    if layer < config.n_layers:
        own = stacked(params, config)
        norms = own.mlp_norm if mlp_input else own.attn_norm
        norm = jax.tree.map(lambda stacked: stacked[layer], norms)
    if norm is None:
        return components
    scale = _scale(norm, config, activations, layer, mlp_input=mlp_input)
    _check_places(len(scale), components.shape[1])
    return frozen(norm, config, components, scale)


def _check_tokens(tokens: Any, minus: Any) -> None:
    lengths = {jnp.shape(some) for some in (tokens, minus) if some is not None} - {()}
    if len(lengths) > 1:
        raise ValueError(
            f"tokens has shape {jnp.shape(tokens)}, minus {jnp.shape(minus)}; give one, or as many"
        )


def _check_places(scales: int, places: int) -> None:
    if scales != places:
        raise ValueError(
            f"the components hold {places} positions, the scale or the tokens {scales}; "
            "give all at the same ones: those of read=..., if the pass had it"
        )


def _scale(
    norm: Norm, config: Config, activations: Mapping[str, Array], layer: int, *, mlp_input: bool
) -> Float[Array, "t 1"]:
    """The scale that the norm divided by: as captured, for an edit may have set it, or computed again."""
    layered = layer < config.n_layers
    site = ("mlp_scale" if mlp_input else "attn_scale") if layered else "final_scale"
    if site in activations:
        value = captured(activations, site)[0]
        return value[layer] if layered else value
    tap = Tap((site,))
    normalize(norm, config, stream_at(config, activations, layer, mlp_input=mlp_input), tap, site)
    return tap.captured[site]


def _unembedding(params: Params, config: Config, tokens: Any) -> Float[Array, "*t d"]:
    """The directions that read these tokens' logits off the normed state, in float32 or wider."""
    tokens = jnp.asarray(tokens)
    if tokens.ndim > 1 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens have shape {tokens.shape} and dtype {tokens.dtype}; give one id, or one for each position"
        )
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(np.atleast_1d(np.asarray(tokens)), config.n_vocab)
    if params.W_U is None:
        return widened(_entries(params.W_E, tokens))
    columns = jax.vmap(_entries, in_axes=(0, None), out_axes=-1)(params.W_U, tokens)
    return widened(columns)


def _entries(table: Float[Array, "v *d"], tokens: Any) -> Float[Array, "..."]:
    """Rows by token; NaN for one outside the vocabulary, where indexing would take another's."""
    return table.at[jnp.asarray(tokens)].get(
        mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    )
