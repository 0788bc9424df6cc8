"""Compare the patterns of heads with a target pattern, in one program for all heads and prompts."""

from collections.abc import Callable
from functools import partial

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxformer.checks import check_vocabulary
from jaxformer.config import Compute, Config
from jaxformer.interp.factored import quotient
from jaxformer.model.checks import check_params
from jaxformer.model.params import Params
from jaxformer.model.stream import upcast
from jaxformer.model.transformer import forward


def match_score(
    pattern: Float[Array, "*l n t s"],
    target: Shaped[Array | np.ndarray, "..."],
    *,
    measure: str = "mul",
    exclude_first: bool = False,
    exclude_current: bool = False,
) -> Float[Array, "*l n"]:
    """Return how well each head's pattern P matches a target pattern T.

    "mul" is Σ P·T / Σ P: the fraction of all attention that goes where a target of zeros and ones has a one. "abs" is
    1 - Σ|P - T| / t: 1 for P = T, -1 if every token attends elsewhere; it also depends on how attention is divided. A
    head whose attention is all excluded scores 0 (NaN in TransformerLens).

    Args:
        target: [t s], the expected attention of each token to each.
        measure: "mul" or "abs"; targets with other values than zeros and ones need "abs".
        exclude_first: leave out attention to the first token, where idle heads attend.
        exclude_current: leave out attention of a token to itself.

    Raises:
        ValueError: a target of another shape, another measure.

    Source: TransformerLens, `head_detector`.

    >>> looks_back = previous_token_target(3).at[0, 0].set(1.0)
    >>> float(match_score(looks_back[None], previous_token_target(3), measure="abs")[0])
    0.6666666269302368
    >>> float(match_score(looks_back[None], previous_token_target(3), exclude_current=True)[0])
    1.0
    """
    if measure not in ("mul", "abs"):
        raise ValueError(f"measure={measure!r} must be 'mul' or 'abs'")
    shape = pattern.shape[-2:]
    if target.shape != shape:
        raise ValueError(
            f"a target of shape {target.shape} does not fit patterns of {shape}; "
            "give the attention of each token (row) to each (column)"
        )
    pattern = upcast(pattern)
    target = jnp.asarray(target).astype(pattern.dtype)
    included = jnp.ones(shape, pattern.dtype)
    included = included.at[:, 0].set(0.0) if exclude_first else included
    included = (
        included * (1 - jnp.eye(*shape, dtype=pattern.dtype)) if exclude_current else included
    )
    if measure == "abs":
        return 1 - (jnp.abs(pattern - target) * included).sum((-2, -1)) / shape[0]
    pattern = pattern * included
    return quotient((pattern * target).sum((-2, -1)), pattern.sum((-2, -1)))


def previous_token_target(length: int) -> Float[Array, "t s"]:
    """Return the pattern of a head that attends to the previous token; the first row is zero.

    >>> previous_token_target(3)[2]
    Array([0., 1., 0.], dtype=float32)
    """
    return jnp.eye(length, k=-1)


def duplicate_token_target(tokens: Int[Array, " t"]) -> Float[Array, "t s"]:
    """Return a pattern with a one at each earlier occurrence of a token; a row may have several, or none.

    >>> duplicate_token_target(jnp.array([7, 3, 7, 7]))[3]
    Array([1., 0., 1., 0.], dtype=float32)
    """
    same = (tokens[:, None] == tokens).astype(float)
    return jnp.tril(same, k=-1)


def induction_target(tokens: Int[Array, " t"]) -> Float[Array, "t s"]:
    """Return a pattern with a one at each token that follows an earlier occurrence of the query token.

    As in TransformerLens, a token that directly repeats has such a one at its own position.

    >>> induction_target(jnp.array([7, 3, 7, 3]))[3]
    Array([0., 0., 1., 0.], dtype=float32)
    """
    earlier = duplicate_token_target(tokens)
    return jnp.pad(earlier, ((0, 0), (1, 0)))[:, :-1]


TARGETS: dict[str, Callable[[Array], Array]] = {
    "previous_token": lambda tokens: previous_token_target(len(tokens)),
    "duplicate_token": duplicate_token_target,
    "induction": induction_target,
}
"""The named target patterns, as functions of the tokens."""


def head_scores(
    params: Params,
    config: Config,
    tokens: Int[Array | np.ndarray, "..."],
    target: str | Shaped[Array | np.ndarray, "..."],
    *,
    measure: str = "mul",
    exclude_first: bool = False,
    exclude_current: bool = False,
    compute: Compute = Compute(),
) -> Float[Array, "l n"]:
    """Return the `match_score` of every head with a target, averaged over prompts, in one compiled program.

    Args:
        tokens: one prompt [t], or several of the same length [b t].
        target: "previous_token", "duplicate_token" or "induction"; or an array: [t s] for all prompts, or [b t s].
        compute: its kernel must have the site pattern.

    The other arguments are those of `match_score`.

    Raises:
        ValueError: an unknown target or one of another shape; tokens for which a named target is all zeros (traced
            tokens score 0), or outside the vocabulary; a kernel without the site pattern.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> head_scores(params, config, jnp.array([[0, 3, 0, 3], [1, 4, 1, 4]]), "induction").shape
    (2, 4)
    """
    check_params(params, config)
    if jnp.ndim(tokens) not in (1, 2) or not np.size(tokens):
        raise ValueError(
            f"tokens have shape {jnp.shape(tokens)}; give one prompt [t] or several [b t]"
        )
    if not isinstance(tokens, jax.core.Tracer):
        check_vocabulary(tokens, config.n_vocab)
    prompts = jnp.atleast_2d(jnp.asarray(tokens))
    targets = _targets(target, prompts)
    options = measure, exclude_first, exclude_current
    return _mean_match(params, config, prompts, targets, options, compute)


def _targets(
    target: str | Shaped[Array | np.ndarray, "..."], prompts: Int[Array, "b t"]
) -> Shaped[Array, "b t s"]:
    """Return the target pattern of each prompt.

    Raises:
        ValueError: an unknown target or one of another shape; concrete tokens for which it is all zeros.
    """
    if isinstance(target, str):
        if target not in TARGETS:
            raise ValueError(
                f"target={target!r} must be a pattern, or one of {', '.join(map(repr, TARGETS))}"
            )
        targets = jax.vmap(TARGETS[target])(prompts)
        if not isinstance(targets, jax.core.Tracer) and not np.any(targets):
            raise ValueError(
                f"target={target!r} is all zeros for these tokens; give tokens that repeat"
            )
        return targets
    shape = (len(prompts), prompts.shape[1], prompts.shape[1])
    if target.shape not in (shape, shape[1:]):
        raise ValueError(
            f"a target of shape {target.shape} does not fit these prompts; give {shape[1:]}, or {shape} "
            "with one target for each prompt"
        )
    return jnp.broadcast_to(jnp.asarray(target), shape)


@partial(jax.jit, static_argnums=(4,))
def _mean_match(
    params: Params,
    config: Config,
    prompts: Int[Array, "b t"],
    targets: Shaped[Array, "b t s"],
    options: tuple[str, bool, bool],
    compute: Compute,
) -> Float[Array, "l n"]:
    measure, first, current = options
    score = partial(match_score, measure=measure, exclude_first=first, exclude_current=current)

    def score_prompt(tokens: Int[Array, " t"], target: Shaped[Array, "t s"]) -> Float[Array, "l n"]:
        out = forward(params, config, tokens, capture=("pattern",), compute=compute)
        return score(out.activations["pattern"], target)

    return jax.vmap(score_prompt)(prompts, targets).mean(0)
