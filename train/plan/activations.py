"""What a backward pass has to have kept: counted in what JAX traced, before anything is compiled."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, Var

from jaxformer.config import Config
from jaxformer.model.params import abstract
from train.data.batches import Batch
from train.devices.layout import Layout
from train.recipe import Recipe
from train.step import How, summed_loss


def kept_bytes(recipe: Recipe, config: Config, layout: Layout) -> int:
    """Bytes of activations that one device keeps from the forward to the backward pass.

    Those are the results of the forward pass that depend on the batch and that `jax.vjp` asks for. A device's
    share of the model is a model too, with fewer heads, neurons and vocabulary entries: that one is traced, on
    the device's share of the batch. Where positions share their mesh axis with heads or neurons, the stream
    counts as if it were whole.
    """
    own = local_config(config, layout)
    taken = {axis for letter in "nfv" for axis in layout.axes(letter)}
    context = recipe.context // (1 if taken & set(layout.axes("t")) else layout.parts("t"))
    rows = recipe.batch // recipe.accumulate // layout.parts("batch")
    batch = Batch(
        jax.ShapeDtypeStruct((rows, context + 1), jnp.int32),
        jax.ShapeDtypeStruct((rows, context), bool),
    )
    how = How(compute=recipe.compute, vocab_chunk=recipe.vocab_chunk)

    def run(params: Any, batch: Batch) -> Any:
        return jax.tree.leaves(jax.vjp(lambda p: summed_loss(p, own, batch, how), params)[1])

    params = abstract(own)
    traced = jax.make_jaxpr(run)(params, batch).jaxpr
    given = len(jax.tree.leaves(params))
    return recipe.seeds * _dependent_bytes(traced, traced.invars[given:])


def local_config(config: Config, layout: Layout) -> Config:
    """The model that one device computes with."""
    batch = set(layout.axes("batch"))

    def part(letter: str) -> int:
        # As in `constrain`: what a batch's mesh axis cuts is whole when it is computed with.
        return 1 if batch & set(layout.axes(letter)) else layout.parts(letter)

    sizes = {
        "n_heads": config.n_heads // part("n"),
        "n_kv_heads": config.sizes["k"] // part("k"),
        "d_mlp": config.d_mlp // part("f"),
        "n_vocab": config.n_vocab // part("v"),
    }
    return dataclasses.replace(config, **sizes)


def _dependent_bytes(jaxpr: Jaxpr, batch: Any) -> int:
    """Of the results, those that depend on these inputs; each once, and none that is an input itself."""
    depends = set(batch)
    for eqn in jaxpr.eqns:
        if any(isinstance(v, Var) and v in depends for v in eqn.invars):
            depends |= set(eqn.outvars)
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal) and v in depends}
    sizes: Any = [v.aval for v in kept - set(jaxpr.invars)]
    return sum(aval.size * aval.dtype.itemsize for aval in sizes)
