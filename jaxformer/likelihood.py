"""How likely a model finds a text: log-probabilities and perplexity."""

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.checks import check_vocabulary
from jaxformer.config import Compute, Config
from jaxformer.model.params import Params
from jaxformer.model.sites import Edit, identity
from jaxformer.model.transformer import forward


def score(
    params: Params, config: Config, tokens: Int[Array, " t"], *,
    edit: Edit = identity, compute: Compute = Compute(),
) -> Float[Array, " t-1"]:  # fmt: skip
    """Return log p(token | all tokens before it), in nats, for every token but the first; `jax.vmap` for a batch.

    Raises:
        ValueError: fewer than two tokens, and everything that `forward` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> score(params, config, jnp.array([3, 1, 4])).shape
    (2,)
    """
    tokens = jnp.asarray(tokens)
    if tokens.size < 2 and tokens.ndim < 2:
        raise ValueError(
            f"tokens holds {tokens.size} tokens; give at least two: the first has no score"
        )
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(tokens, config.n_vocab)
    logits = forward(params, config, tokens[:-1], edit=edit, compute=compute).logits
    of_token = jax.nn.log_softmax(logits).at[jnp.arange(len(tokens) - 1), tokens[1:]]
    return of_token.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def perplexity(
    params: Params, config: Config, tokens: Int[Array, " t"], *,
    edit: Edit = identity, compute: Compute = Compute(),
) -> Float[Array, ""]:  # fmt: skip
    """Return exp(-mean(score)): the number of equally likely tokens that would surprise as much."""
    return jnp.exp(-score(params, config, tokens, edit=edit, compute=compute).mean())
