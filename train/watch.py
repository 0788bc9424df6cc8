"""Measurements during training: scores of every head, norms of every layer's updates."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.config import Compute, Config
from jaxformer.interp.heads import induction_score, pattern_entropy, previous_token_score
from jaxformer.model.params import Params
from jaxformer.model.stream import upcast
from jaxformer.model.transformer import forward
from train.data.batches import Batch
from train.recipe import Watch

PROMPTS = 16
"""Sequences per measurement."""


class Look(NamedTuple):
    """One measurement: the sites that it reads, the tokens to run, and the function to apply."""

    sites: tuple[str, ...]
    repeated: bool
    """run on repeated random tokens instead of the validation tokens"""
    measure: Callable[[dict[str, Array], int], dict[str, Array]]
    """(activations of one sequence, period of the repeats) -> named values per layer, or per layer and head"""


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
"""The measurements by name, as in `Recipe.watch`."""


def watcher(
    names: Iterable[Watch], config: Config, held_out: Batch, compute: Compute
) -> Callable[[Params], dict[str, Float[Array, "..."]]]:
    """Return a function from parameters to the named measurements, as means over a few sequences; it can be jitted."""
    looks = [LOOKS[name] for name in names]
    counted = np.asarray(held_out.counted[0]).any(axis=-1)  # padding rows are not text
    real = jnp.asarray(np.asarray(held_out.windows[0])[counted][:PROMPTS, :-1])
    period = real.shape[1] // 2
    repeats = repeated_tokens(config.n_vocab, period, PROMPTS)

    def look(params: Params, tokens: Int[Array, "rows t"], *, repeated: bool) -> dict[str, Array]:
        chosen = [look for look in looks if look.repeated == repeated]
        if not chosen:
            return {}
        sites = _sites(chosen, config)

        def one(sequence: Int[Array, " t"]) -> dict[str, Array]:
            out = forward(params, config, sequence, capture=sites, compute=compute)
            activations = jax.tree.map(upcast, out.activations)  # means of bfloat16 lose digits
            found = [look.measure(activations, period) for look in chosen]
            return {name: value for each in found for name, value in each.items()}

        return jax.tree.map(lambda rows: rows.mean(0), jax.vmap(one)(tokens))

    return lambda params: look(params, real, repeated=False) | look(params, repeats, repeated=True)


def repeated_tokens(n_vocab: int, period: int, rows: int) -> Int[Array, "rows t"]:
    """Return random sequences, each repeated once; their tokens differ if the vocabulary is large enough."""

    def row(key: Array) -> Array:
        distinct = jax.random.permutation(key, n_vocab)
        return jnp.tile(distinct[jnp.arange(period) % n_vocab], 2)

    return jax.vmap(row)(jax.random.split(jax.random.key(2**31 - 2), rows)).astype(jnp.int32)


def _sites(looks: Iterable[Look], config: Config) -> tuple[str, ...]:
    sites = {site for look in looks for site in look.sites}
    return tuple(sorted(sites if config.d_mlp else sites - {"mlp_out"}))
