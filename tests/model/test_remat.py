"""Rematerialisation by site: the backward pass keeps the values named, once each, and the numbers stay the same."""

import dataclasses
import math
from collections import Counter
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Compute, Config, abstract, available_sites, forward, unstack
from jaxformer.config import Saved
from jaxformer.sites import AXES, MODEL_SITES, SITES
from tests.helpers.errors import raises
from tests.helpers.models import MODERN, NAMED, SEED, every_model, random_params, random_tokens
from tests.helpers.runs import TINY
from train.__main__ import parse
from train.presets import PRESETS
from train.runs import RunError, open_run

LENGTH = 7
UNREAD = {"parallel": {"attn_out"}, "attention_only": {"attn_out"}}
"""What is added to the stream and not read from it again."""


def saving(*sites: Any, **options: Any) -> Compute:
    return Compute(remat="sites", saved=sites, **options)


def loss(params, config: Config, tokens, compute: Compute):
    return jnp.square(forward(params, config, tokens, compute=compute).logits).mean()


def kept(config: Config, compute: Compute) -> Counter[tuple[int, ...]]:
    """The shapes of what a backward pass gets from the forward pass, other than parameters and their slices."""

    def residuals(params, tokens):
        return jax.vjp(lambda params: loss(params, config, tokens, compute), params)[1]

    tokens = jax.ShapeDtypeStruct((LENGTH,), jnp.int32)
    found = jax.tree.leaves(jax.eval_shape(residuals, abstract(config), tokens))
    return Counter(x.shape for x in found if LENGTH in x.shape)


def sizes(config: Config, site: str) -> tuple[int, ...]:
    """A site's shape, layers stacked in front."""
    known = {**config.sizes, "t": LENGTH, "s": LENGTH, "1": 1}
    return (config.n_layers, *(known[letter] for letter in AXES[site].split()))


@pytest.mark.slow(unless=("seed",))
@every_model
def test_the_backward_pass_keeps_the_sites_named_and_each_once(name: str):
    config = NAMED[name]
    block = kept(config, Compute(remat="block"))
    for site in get_args(Saved):
        if site in available_sites(config):
            read = site not in UNREAD.get(name, ())
            own = Counter([sizes(config, site)] if read else [])
            assert kept(config, saving(site)) - block == own, site


def test_more_names_are_more_memory_up_to_what_is_kept_without():
    def floats(compute: Compute) -> int:
        return sum(math.prod(shape) * number for shape, number in kept(MODERN, compute).items())

    names = ("resid_mid", "z", "rot_q", "pattern", "pre")
    grown = [floats(saving(*names[:i])) for i in range(1, len(names) + 1)]
    ladder = [floats(Compute(remat="block")), *grown, floats(Compute())]
    assert ladder == sorted(set(ladder))


@pytest.mark.slow
def test_the_compiled_program_holds_less():
    config = dataclasses.replace(MODERN, n_layers=4)
    tokens = jax.ShapeDtypeStruct((128,), jnp.int32)

    def held(compute: Compute) -> int:
        gradient = jax.jit(jax.grad(partial(loss, config=config, compute=compute)))
        compiled = gradient.lower(abstract(config), tokens=tokens).compile()
        analysis: Any = compiled.memory_analysis()
        return analysis.temp_size_in_bytes

    none, block, scores = held(Compute()), held(Compute(remat="block")), held(saving("scores"))
    assert block < 0.5 * none
    pattern = 4 * config.n_heads * 128 * 128
    assert block + 2.5 * pattern < scores < none  # of four: some are there anyway


@pytest.mark.slow(unless=("sites",))
@pytest.mark.parametrize("remat", ["block", "dots", "sites"])
def test_xla_is_told_not_to_keep_what_is_recomputed_where_layers_are_in_no_loop(remat: Any):
    config = dataclasses.replace(MODERN, n_layers=4)
    tokens = random_tokens(config, LENGTH)
    saved: Any = ("z",) if remat == "sites" else ()

    def forbidden(params: Any, unroll: int) -> bool:
        how = Compute(remat=remat, saved=saved, unroll=unroll)
        program = jax.make_jaxpr(lambda params: loss(params, config, tokens, how))(params)
        return "prevent_cse=True" in str(program)

    params: Any = random_params(config)
    assert [forbidden(params, unroll) for unroll in (1, 2, 3, 4)] == [False, False, True, True]
    assert forbidden(unstack(params), 1)


@pytest.mark.slow
@every_model
def test_whatever_is_kept_logits_and_gradients_are_the_same(name: str, x64):
    config = NAMED[name]
    params, tokens = random_params(config, dtype=jnp.float64), random_tokens(config, LENGTH)
    every_site = [site for site in get_args(Saved) if site in available_sites(config)]
    run = jax.jit(jax.value_and_grad(loss), static_argnums=(1, 3))
    plain, kept = (run(params, config, tokens, how) for how in (Compute(), saving(*every_site)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), kept, plain)


@pytest.mark.parametrize("remat", ["none", "block", "dots"])
def test_names_are_in_no_program_but_that_of_sites(remat: Any):
    params, tokens = random_params(MODERN), random_tokens(MODERN, LENGTH)

    def program(compute: Compute) -> str:
        return str(jax.make_jaxpr(lambda params: loss(params, MODERN, tokens, compute))(params))

    assert "name[" not in program(Compute(remat=remat))
    text = program(saving("z", "pre"))
    assert [site for site in SITES if f"name[name={site}]" in text] == ["z", "pre"]


def test_the_sites_that_can_be_kept_are_those_that_some_backward_pass_reads():
    for_nothing = {"resid_pre", "head_out", "mlp_out", "resid_post"}
    assert set(get_args(Saved)) == {*SITES} - MODEL_SITES - for_nothing


def test_a_site_that_this_config_lacks_is_refused():
    config, tokens = NAMED["parallel"], random_tokens(SEED, LENGTH)
    with raises(ValueError, "saved=('z', 'resid_mid')", "'resid_mid'"):
        forward(random_params(config), config, tokens, compute=saving("z", "resid_mid"))
    with raises(ValueError, "saved=('rot_q',)", "q", "scores"):
        forward(random_params(SEED), SEED, tokens, compute=saving("rot_q"))
    with raises(ValueError, "saved=('rot_q',)"):
        dataclasses.replace(PRESETS["seed"](), compute=saving("rot_q"))


def test_a_run_s_sites_come_from_its_command_and_are_part_of_its_recipe(tmp_path):
    words = ["--compute.remat", "sites", "--compute.saved", "resid_mid", "z"]
    recipe = parse(["seed", *TINY, *words]).recipe
    assert recipe.compute.saved == ("resid_mid", "z")
    open_run(tmp_path / "run", recipe, "text", resume=False, overwrite=False)
    open_run(tmp_path / "run", recipe, "text", resume=True, overwrite=False)
    other = dataclasses.replace(recipe, compute=saving("z"))
    with raises(RunError, "recipe.compute.saved", ["resid_mid", "z"], ["z"]):
        open_run(tmp_path / "run", other, "text", resume=True, overwrite=False)
