"""How likely a model finds a text."""

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.checks import check_vocabulary
from jaxformer.config import Compute, Config
from jaxformer.model.params import Params
from jaxformer.model.sites import Edit, keep
from jaxformer.model.transformer import forward


def score(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    *,
    edit: Edit = keep,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, " t-1"]:
    """Log p(token | all tokens before it), in nats, of every token but the first; `jax.vmap` gives it a batch.

    Args:
        tokens: at least two.
        edit: as in `forward`.

    Raises:
        ValueError: fewer than two tokens, and all that `forward` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> score(params, config, jnp.array([3, 1, 4])).shape
    (2,)
    """
    tokens = jnp.asarray(tokens)
    if tokens.size < 2 and tokens.ndim < 2:
        raise ValueError(
            f"{tokens.size} tokens cannot be scored: the first has none before it; give at least two"
        )
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(tokens, config.n_vocab)
    logits = forward(params, config, tokens[:-1], edit=edit, compute=compute).logits
    rows = jnp.arange(len(tokens) - 1)
    return (
        jax.nn.log_softmax(logits)
        .at[rows, tokens[1:]]
        .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    )


def perplexity(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    *,
    edit: Edit = keep,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, ""]:
    """exp(-mean(score)): the number of equally likely tokens that would surprise as much.

    Raises:
        ValueError: as `score`.
    """
    return jnp.exp(-score(params, config, tokens, edit=edit, compute=compute).mean())
