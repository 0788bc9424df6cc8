"""Generation written plainly, for the tests: one uncached forward pass per token."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import Config, Edit, Params, Sampling, forward, identity
from jaxformer.decoding.sampling import choose
from jaxformer.sites import activation_axis
from tests.helpers.models import NAMED, random_params, random_tokens

WIDTH = 48
LONG = {
    name: dataclasses.replace(config, n_context=WIDTH) if config.n_context else config
    for name, config in NAMED.items()
}
"""The named models, with room for longer texts in their position tables."""

GREEDY = Sampling(temperature=0)


@partial(jax.jit, static_argnames="edit")
def next_logits(
    params: Params, config: Config, padded: jax.Array, length: Any, edit: Edit = identity
) -> jax.Array:
    """After the first `length` tokens; what comes behind them cannot change them."""
    return forward(params, config, padded, edit=edit).logits[length - 1]


draw = jax.jit(choose)


def naive_text(
    params: Params,
    config: Config,
    prompt: Any,
    n_tokens: int,
    key: jax.Array,
    sampling: Sampling = GREEDY,
    context: int | None = None,
    edit: Edit = identity,
) -> list[int]:
    """The tokens that follow; a text of more than `context` tokens is cut to the latest half of that."""
    text = [int(token) for token in prompt]
    shown, seen = text[-(context or len(text)) :], np.zeros(config.n_vocab, bool)
    seen[text] = True
    drawn = []
    for number in range(n_tokens):
        if context and len(shown) > context:
            shown = shown[-max(context // 2, 1) :]
        padded = np.zeros(config.n_context or WIDTH, np.int32)
        padded[: len(shown)] = shown
        logits = next_logits(params, config, jnp.asarray(padded), len(shown), edit)
        token = int(draw(jax.random.fold_in(key, number), sampling, logits, jnp.asarray(seen)))
        seen[token] = True
        drawn.append(token)
        shown = [*shown, token]
    return drawn


LENGTHS = (3, 16, 17)
close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)


def model(name: str) -> tuple[Any, Config]:
    return random_params(LONG[name], dtype=jnp.float64), LONG[name]


def prompts(config: Config) -> list[list[int]]:
    return [random_tokens(config, n, seed=n).tolist() for n in LENGTHS]


@partial(jax.jit, static_argnames=("capture", "edit"))
def filled_up(params, config, tokens, capture, edit=identity):
    return forward(params, config, tokens, capture=capture, edit=edit).activations


def full_pass(params, config, text, capture, edit=identity) -> dict:
    """Of the text alone: what fills it up, so that one program serves all, cannot change it."""
    padded = jnp.zeros(WIDTH, jnp.int32).at[: len(text)].set(text)
    found = sliced(filled_up(params, config, padded, capture, edit), slice(len(text)))
    weights = {
        site: found[site][..., : len(text)] for site in ("scores", "pattern") if site in found
    }
    return found | weights


def sliced(activations: dict, rows: slice) -> dict:
    """These positions of a full forward pass."""
    return {
        site: value[(slice(None),) * activation_axis(site) + (rows,)]
        for site, value in activations.items()
    }
