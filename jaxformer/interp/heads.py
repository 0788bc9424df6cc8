"""What a head does, as a number, for all heads at once: what it attends to, and whether it copies.

Functions of a pattern take what `forward` captures at that site; `head_scores` runs the model itself.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxformer.checks import check_vocabulary
from jaxformer.config import Compute, Config
from jaxformer.interp.circuits import ov_circuit, unembedding
from jaxformer.interp.factored import quotient
from jaxformer.model.params import Params
from jaxformer.model.stream import widened
from jaxformer.model.transformer import forward


def previous_token_score(pattern: Float[Array, "*l n t s"]) -> Float[Array, "*l n"]:
    """Mean attention from a token to the one before it.

    Raises:
        ValueError: a single token, which has none before it; a pattern that is not of one whole sequence.
    """
    return _diagonal_mean(pattern, 1, first=1)


def induction_score(pattern: Float[Array, "*l n t s"], period: int) -> Float[Array, "*l n"]:
    """Mean attention, in a sequence that repeats, to the token after the previous occurrence.

    Args:
        pattern: of a sequence of different tokens that repeats itself every `period` of them.
        period: the distance between two occurrences of one token, at least 2.

    Raises:
        ValueError: a period below 2, or no repeat; a pattern that is not of one whole sequence.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads", "prefix matching score".
    """
    if period < 2:
        raise ValueError(f"period={period} must be at least 2: a token before the one that repeats")
    return _diagonal_mean(pattern, period - 1, first=period)


def duplicate_token_score(
    pattern: Float[Array, "*l n t s"], tokens: Int[Array, " tokens"]
) -> Float[Array, "*l n"]:
    """Mean attention to all earlier occurrences of a token together, over the tokens that have one.

    `match_score` with `duplicate_token_target` is TransformerLens's number, which counts the other tokens'
    attention as missed.

    Raises:
        ValueError: tokens none of which repeats (inside traced code the score is then NaN), or of another number
            than the pattern's.

    Source: Wang et al. 2023, "Interpretability in the Wild", §3, "Duplicate Token Heads".

    >>> backwards = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.75, 0.0, 0.25]]])
    >>> duplicate_token_score(backwards, jnp.array([7, 3, 7]))
    Array([0.75], dtype=float32)
    """
    length = _check_square(pattern)
    if len(tokens) != length:
        raise ValueError(f"{len(tokens)} tokens do not fit a pattern of {length}")
    if not isinstance(tokens, jax.core.Tracer) and len(np.unique(tokens)) == len(tokens):
        raise ValueError(f"none of these {len(tokens)} tokens occurs twice; give some that repeat")
    pattern = widened(pattern)
    target = duplicate_token_target(tokens).astype(pattern.dtype)
    repeats = target.max(axis=-1)
    return (pattern * target).sum((-2, -1)) / repeats.sum()


def pattern_entropy(pattern: Float[Array, "*l n t s"]) -> Float[Array, "*l n"]:
    """How many tokens a head looks at: the mean over queries of -Σ_s p·ln p, in nats."""
    pattern = widened(pattern)
    some = pattern > 0  # xlogy's derivative at 0 is infinite, and a masked score's would be NaN
    logs = jnp.log(jnp.where(some, pattern, 1.0))
    return -(pattern * logs).sum(-1).mean(-1)


def match_score(
    pattern: Float[Array, "*l n t s"],
    target: Shaped[Array | np.ndarray, "..."],
    *,
    measure: str = "mul",
    exclude_first: bool = False,
    exclude_current: bool = False,
) -> Float[Array, "*l n"]:
    """How well each head's pattern P matches a target T that you expect of it.

    "mul" is Σ P·T / Σ P: with a target of zeros and ones, the part of all attention that goes where the
    target has a one. "abs" is 1 - Σ|P - T| / t: 1 for the target itself, down to -1 where every token looks
    elsewhere; it also sees how attention is divided. A head whose attention is all excluded matches nothing:
    0 (TransformerLens has NaN).

    Args:
        pattern: of one sequence, any number of axes in front.
        target: [t s], the attention that each token is to give each.
        measure: "mul" or "abs"; targets that are not of zeros and ones need "abs".
        exclude_first: leave out attention to the first token, where heads rest that have nothing to do.
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
    length = pattern.shape[-2:]
    if target.shape != length:
        raise ValueError(
            f"a target of shape {target.shape} does not fit patterns of {length}; "
            "give the attention of each token (row) to each (column)"
        )
    pattern = widened(pattern)
    target = jnp.asarray(target).astype(pattern.dtype)
    counted = jnp.ones(length, pattern.dtype)
    counted = counted.at[:, 0].set(0.0) if exclude_first else counted
    counted = counted * (1 - jnp.eye(*length, dtype=pattern.dtype)) if exclude_current else counted
    if measure == "abs":
        return 1 - (jnp.abs(pattern - target) * counted).sum((-2, -1)) / length[0]
    attention, matched = (x.sum((-2, -1)) for x in (pattern * counted, pattern * counted * target))
    return quotient(matched, attention)


def previous_token_target(length: int) -> Float[Array, "t s"]:
    """The pattern of a head in which each token looks at the one before it; the first has none.

    >>> previous_token_target(3)[2]
    Array([0., 1., 0.], dtype=float32)
    """
    return jnp.eye(length, k=-1)


def duplicate_token_target(tokens: Int[Array, " t"]) -> Float[Array, "t s"]:
    """A one for each earlier occurrence of a token: a row may hold several, or none.

    >>> duplicate_token_target(jnp.array([7, 3, 7, 7]))[3]
    Array([1., 0., 1., 0.], dtype=float32)
    """
    same = (tokens[:, None] == tokens).astype(float)
    return jnp.tril(same, k=-1)


def induction_target(tokens: Int[Array, " t"]) -> Float[Array, "t s"]:
    """A one for each token that came after an earlier occurrence.

    As in TransformerLens, a token that directly follows its like has such a one in its own place.

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
"""Target patterns that are computed from the tokens, by name."""


def head_scores(
    params: Params,
    config: Config,
    tokens: Int[Array | np.ndarray, "..."],
    target: str | Shaped[Array | np.ndarray, "..."],
    *,
    measure: str = "mul",
    exclude_first: bool = False,
    exclude_current: bool = False,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Float[Array, "l n"]:
    """The `match_score` of every head with a target, as a mean over prompts, in one compiled program.

    Args:
        tokens: one prompt [t], or several of one length [b t].
        target: "previous_token", "duplicate_token" or "induction"; or a pattern of your own: [t s] for every
            prompt, or [b t s].
        measure: as in `match_score`.
        exclude_first: as in `match_score`.
        exclude_current: as in `match_score`.
        compute: how to run it; its kernel must form the pattern.

    Raises:
        ValueError: an unknown target or one of another shape, tokens in which a named target finds nothing
            (traced, they score 0) or that are outside the vocabulary, a kernel without patterns.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> head_scores(params, config, jnp.array([[0, 3, 0, 3], [1, 4, 1, 4]]), "induction").shape
    (2, 4)
    """
    if jnp.ndim(tokens) not in (1, 2) or not np.size(tokens):
        raise ValueError(
            f"tokens have shape {jnp.shape(tokens)}; give a prompt [t] or several [b t]"
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
    """Each prompt's target pattern; refused where the tokens at hand hold nothing to look for."""
    if isinstance(target, str):
        if target not in TARGETS:
            raise ValueError(
                f"target={target!r} must be a pattern or one of {', '.join(map(repr, TARGETS))}"
            )
        targets = jax.vmap(TARGETS[target])(prompts)
        if not isinstance(targets, jax.core.Tracer) and not np.any(targets):
            raise ValueError(
                f"target={target!r} finds nothing to look at in these tokens; give some that repeat"
            )
        return targets
    each = (len(prompts), prompts.shape[1], prompts.shape[1])
    if target.shape not in (each, each[1:]):
        raise ValueError(
            f"a target of shape {target.shape} does not fit these prompts; give {each[1:]}, or {each} "
            "for a target of each prompt's own"
        )
    return jnp.broadcast_to(jnp.asarray(target), each)


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

    def one(tokens: Int[Array, " t"], target: Shaped[Array, "t s"]) -> Float[Array, "l n"]:
        out = forward(params, config, tokens, capture=("pattern",), compute=compute)
        return match_score(
            out.activations["pattern"], target,
            measure=measure, exclude_first=first, exclude_current=current,
        )  # fmt: skip

    return jax.vmap(one)(prompts, targets).mean(0)


def copying_score(params: Params, config: Config) -> Float[Array, "l n"]:
    """Whether seeing a token makes a head raise that token's logit (1), or lower it (-1): Σλ / Σ|λ|.

    λ are the eigenvalues of the full OV circuit W_E · W_V · W_O · W_U, which takes tokens to logits. All but
    d_head of them are 0, and those are found from a matrix of h × h. 1 says that all are positive, -1 that
    all are negative; a head that writes nothing has 0. Norms, biases and other layers are left out (fold the
    norms first); positive eigenvalues do not prove copying, they summarise it.

    Raises:
        ValueError: unstacked parameters, or those of another Config.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", "Detecting Copying Heads".

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=0, n_vocab=5)
    >>> copying_score(jaxformer.init(config, jax.random.key(0)), config).shape
    (2, 4)
    """
    # W_E · (OV · W_U) and (OV · W_U) · W_E share all eigenvalues but zeros: no axis of v is left.
    again = unembedding(params) @ widened(params.W_E)
    full = ov_circuit(params, config) @ again
    return quotient(full.trace, jnp.abs(full.eigenvalues).sum(-1))


def _diagonal_mean(pattern: Array, back: int, first: int) -> Array:
    """Mean attention to the token `back` places earlier, over the queries from `first` on."""
    length = _check_square(pattern)
    if length <= first:
        raise ValueError(f"a pattern of {length} tokens is too short; give at least {first + 1}")
    queries = jnp.arange(first, length)
    return widened(pattern)[..., queries, queries - back].mean(-1)


def _check_square(pattern: Array) -> int:
    """The number of tokens of a whole sequence's pattern.

    Raises:
        ValueError: queries and keys are not of the same tokens.
    """
    queries, keys = pattern.shape[-2:]
    if queries != keys:
        raise ValueError(
            f"a pattern of {queries} queries and {keys} keys is not that of one whole sequence; "
            "capture it with forward, without a cache"
        )
    return queries
