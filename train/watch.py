"""Looking inside while training: scores of every head and sizes of every layer's updates."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.interp.heads import induction_score, pattern_entropy, previous_token_score
from jaxformer.model.params import Params
from jaxformer.model.stream import widened
from jaxformer.model.transformer import forward
from train.data.batches import Batch
from train.recipe import Watch

PROMPTS = 16


class Look(NamedTuple):
    """One thing to watch: the sites it reads, on which tokens, and what it makes of them."""

    sites: tuple[str, ...]
    repeated: bool
    """look at random tokens that repeat, rather than at the held-out ones"""
    measure: Callable[[dict[str, Array], int], dict[str, Array]]
    """(activations of one sequence, period of the repeats) -> numbers by layer, and head"""


def _update_norms(activations: dict[str, Array], period: int) -> dict[str, Array]:
    del period
    return {
        site.replace("out", "update_norm"): jnp.linalg.norm(value, axis=-1).mean(-1)
        for site, value in activations.items()
        if site in ("attn_out", "mlp_out")
    }


LOOKS: dict[Watch, Look] = {
    "induction": Look(
        ("pattern",), True, lambda a, period: {"induction": induction_score(a["pattern"], period)}
    ),
    "previous-token": Look(
        ("pattern",), False, lambda a, _: {"previous_token": previous_token_score(a["pattern"])}
    ),
    "pattern-entropy": Look(
        ("pattern",), False, lambda a, _: {"pattern_entropy": pattern_entropy(a["pattern"])}
    ),
    "update-norm": Look(("attn_out", "mlp_out"), False, _update_norms),
}
"""By name in a Recipe's `watch`."""


def watcher(
    names: Iterable[Watch], config: Config, held_out: Batch, compute: Compute
) -> Callable[[Params], dict[str, Float[Array, "..."]]]:
    """A function from parameters to what there is to see, means over a few sequences; to be jitted."""
    looks = [LOOKS[name] for name in names]
    whole = np.asarray(held_out.counted[0]).any(axis=-1)  # what fills up the batch is no text
    real = jnp.asarray(np.asarray(held_out.windows[0])[whole][:PROMPTS, :-1])
    period = real.shape[1] // 2
    repeats = repeated_tokens(config.n_vocab, period, PROMPTS)

    def look(params: Params, tokens: Int[Array, "rows t"], *, repeated: bool) -> dict[str, Array]:
        chosen = [look for look in looks if look.repeated == repeated]
        if not chosen:
            return {}
        sites = _sites(chosen, config)

        def one(sequence: Int[Array, " t"]) -> dict[str, Array]:
            out = forward(params, config, sequence, capture=sites, compute=compute)
            shown = jax.tree.map(widened, out.activations)  # means of narrow floats lose digits
            found = [look.measure(shown, period) for look in chosen]
            return {name: value for each in found for name, value in each.items()}

        return jax.tree.map(lambda rows: rows.mean(0), jax.vmap(one)(tokens))

    return lambda params: look(params, real, repeated=False) | look(params, repeats, repeated=True)


def repeated_tokens(n_vocab: int, period: int, rows: int) -> Int[Array, "rows t"]:
    """Random tokens, each sequence twice; all different within it where the vocabulary has enough."""

    def row(key: Array) -> Array:
        distinct = jax.random.permutation(key, n_vocab)
        return jnp.tile(distinct[jnp.arange(period) % n_vocab], 2)

    return jax.vmap(row)(jax.random.split(jax.random.key(2**31 - 2), rows)).astype(jnp.int32)


def _sites(looks: Iterable[Look], config: Config) -> tuple[str, ...]:
    sites = {site for look in looks for site in look.sites}
    return tuple(sorted(sites if config.d_mlp else sites - {"mlp_out"}))
