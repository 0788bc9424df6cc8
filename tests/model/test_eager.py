"""Eager calls: the second compiles nothing; data edits share programs; functions are traced at every call."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from jaxformer import (
    Compute,
    available_sites,
    beam_search,
    empty_cache,
    forward,
    generate,
    loss,
    perplexity,
    score,
    stream_tokens,
    unstack,
)
from jaxformer.checks import as_array
from jaxformer.edits import check_capture
from jaxformer.interp.attribution import gradients
from jaxformer.interp.edit import ablate, at, chain, knock_out, patch, patch_layers, steer
from jaxformer.interp.jacobians import jacobian
from jaxformer.model.checks import Inputs, check_order, check_shapes
from jaxformer.model.transformer import run_model
from jaxformer.sites import identity
from tests.helpers.compilations import compilations, mappings
from tests.helpers.errors import raises
from tests.helpers.models import MODERN, NAMED, SEED, random_params, random_tokens

PARAMS, TOKENS = random_params(SEED), random_tokens(SEED, 6)
KEY = jax.random.key(3)
D, WIDE = jnp.ones(SEED.d_model), jnp.ones((SEED.n_layers, 6, SEED.d_model))


def compiled_by(call: Callable[[], Any]) -> int:
    with compilations() as found:
        jax.block_until_ready(call())
    return len(found)


CALLS: dict[str, Callable[[int], Any]] = {
    "forward": lambda i: forward(PARAMS, SEED, TOKENS),
    "another list of tokens": lambda i: forward(PARAMS, SEED, [i, 1, 2]),
    "capture": lambda i: forward(PARAMS, SEED, TOKENS, capture="all"),
    "segments": lambda i: forward(PARAMS, SEED, TOKENS, segments=[0, 0, i + 1, 9, 9, 9]),
    "logits_at": lambda i: forward(PARAMS, SEED, TOKENS, logits_at=[i, -1]),
    "a cache": lambda i: forward(PARAMS, SEED, TOKENS, empty_cache(SEED, 8)),
    "NumPy parameters": lambda i: forward(jax.tree.map(np.asarray, PARAMS), SEED, TOKENS),
    "score": lambda i: score(PARAMS, SEED, TOKENS),
    "loss in chunks": lambda i: loss(PARAMS, SEED, TOKENS, vocab_chunk=4),
    "perplexity": lambda i: perplexity(PARAMS, SEED, TOKENS),
    "grad": lambda i: jax.grad(loss)(PARAMS, SEED, TOKENS),
    "vmap": lambda i: jax.vmap(forward, (None, None, 0))(PARAMS, SEED, jnp.stack([TOKENS] * 2)),
    "vmap of grad": lambda i: jax.vmap(jax.grad(loss), (None, None, 0))(
        PARAMS, SEED, jnp.stack([TOKENS] * 2)
    ),
    "another head": lambda i: forward(PARAMS, SEED, TOKENS, edit=ablate("z", 1, head=i)),
    "another strength": lambda i: score(PARAMS, SEED, TOKENS, edit=steer(i % 2, D, 0.5 * i)),
    "another value": lambda i: loss(
        PARAMS, SEED, TOKENS, edit=patch("resid_post", i % 2, {"position": i}, i * D)
    ),
    "values of all layers": lambda i: forward(
        PARAMS, SEED, TOKENS, edit=patch_layers("mlp_out", {"position": np.int64(i)}, WIDE)
    ),
    "another query": lambda i: forward(PARAMS, SEED, TOKENS, edit=knock_out(i + 1, 0)),
    "a chain": lambda i: forward(
        PARAMS, SEED, TOKENS, edit=chain(ablate("z", 0, head=i), steer(1, D, float(i)))
    ),
    "a Partial": lambda i: forward(
        PARAMS, SEED, TOKENS, edit=at("z", 0, Partial(jnp.multiply, float(i)))
    ),
    "grad of a strength": lambda i: jax.grad(
        lambda s: loss(PARAMS, SEED, TOKENS, edit=steer(1, D, s))
    )(0.5 * i),
    "vmap of strengths": lambda i: jax.vmap(
        lambda s: score(PARAMS, SEED, TOKENS, edit=steer(1, D, s))
    )(jnp.arange(3.0) + i),
    "generate, another strength": lambda i: (
        generate(PARAMS, SEED, [1, 2], 3, KEY, edit=steer(1, D, 0.5 * i)).tokens
    ),
    "generate, vmap of strengths": lambda i: jax.vmap(
        lambda s: generate(PARAMS, SEED, [1, 2], 3, KEY, edit=steer(1, D, s)).tokens
    )(jnp.arange(3.0) + i),
    "generate, another temperature": lambda i: (
        generate(PARAMS, SEED, [1, 2], 3, KEY, temperature=0.5 + i).tokens
    ),
    "stream_tokens": lambda i: list(
        stream_tokens(PARAMS, SEED, [1, 2], 20, KEY, edit=steer(1, D, 0.5 * i))
    ),
    "beam_search": lambda i: beam_search(PARAMS, SEED, [1, 2], 3, 2, edit=ablate("z", 0, head=i)),
    "gradients": lambda i: gradients(
        PARAMS, SEED, TOKENS, lambda logits: logits[-1, 2], ("z",), edit=ablate("z", 0, head=i)
    ),
    "jacobian": lambda i: jacobian(
        PARAMS, SEED, TOKENS, ("resid_pre", 0, 0), ("resid_post", 1, 2), edit=steer(1, D, 0.5 * i)
    ),
}


@pytest.mark.slow(unless=("forward", "grad", "vmap", "another head", "generate, another strength"))
@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing(name: str):
    CALLS[name](1)
    assert compiled_by(partial(CALLS[name], 2)) == 0


def test_another_number_gives_what_a_function_gives():
    """A program that is shared must not hold the first call's numbers."""
    for head in range(SEED.n_heads):

        def by_hand(site, layer, value, head=head):
            cut = jnp.where(layer == 1, value.at[:, head].set(0.0), value)
            return cut if site == "z" else value

        found = forward(PARAMS, SEED, TOKENS, edit=ablate("z", 1, head=head)).logits
        expected = forward(PARAMS, SEED, TOKENS, edit=by_hand).logits
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


RUNS: dict[str, Callable[[Any], Any]] = {
    "forward": lambda edit: forward(PARAMS, SEED, TOKENS, edit=edit).logits,
    "score": lambda edit: score(PARAMS, SEED, TOKENS, edit=edit),
    "generate": lambda edit: generate(PARAMS, SEED, [1, 2], 3, KEY, edit=edit).log_probs,
}


@pytest.mark.slow(unless=("forward",))
@pytest.mark.parametrize("name", RUNS)
def test_a_function_is_traced_at_every_call_because_what_it_closes_over_may_change(name: str):
    setting = {"strength": 0.1}

    def add(value):
        return value + setting["strength"]

    def function(site, layer, value):
        return add(value) if site == "resid_pre" else value

    expected = RUNS[name](steer(None, D, 0.2))
    for edit in (function, at("resid_pre", None, add), {"resid_pre": add}):
        setting["strength"] = 0.1
        before = RUNS[name](edit)
        setting["strength"] = 0.2
        np.testing.assert_allclose(RUNS[name](edit), expected, rtol=1e-5, atol=1e-5)
        assert not np.allclose(before, expected)


def test_a_gradient_passes_to_a_value_that_a_function_closes_over():
    def by_function(strength):
        edit = lambda site, _, value: value + strength if site == "embed" else value  # noqa: E731
        return loss(PARAMS, SEED, TOKENS, edit=edit)

    expected = jax.grad(lambda s: loss(PARAMS, SEED, TOKENS, edit=steer(None, D, s, site="embed")))
    np.testing.assert_allclose(jax.grad(by_function)(0.5), expected(0.5), rtol=1e-5)
    both = jax.vmap(jax.grad(by_function))(jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(both, [expected(0.5)] * 2, rtol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
@pytest.mark.slow
def test_programs_of_functions_are_dropped():
    """A kept program holds some 20 of the 65,530 mappings that Linux grants a process."""
    one = dataclasses.replace(SEED, n_layers=1)
    params, counts = random_params(one), []
    for i in range(300):
        forward(params, one, [1, 2], edit=lambda site, _, v, i=i: v * i if site == "z" else v)
        if i + 1 in (100, 300):
            counts.append(mappings())
    assert abs(counts[1] - counts[0]) <= 50


def test_checks_of_concrete_values_speak_at_every_call():
    forward(PARAMS, SEED, TOKENS, edit=ablate("z", 1, head=0, position=0))
    with raises(ValueError, 11, SEED.n_vocab):
        forward(PARAMS, SEED, [1, 2, 3, 4, 5, 11])
    with raises(ValueError, "layer=2"):
        forward(PARAMS, SEED, TOKENS, edit=ablate("z", 2, head=0))
    with raises(ValueError, "head=4"):
        forward(PARAMS, SEED, TOKENS, edit=ablate("z", 1, head=4))
    with raises(ValueError, "position=6"):
        forward(PARAMS, SEED, TOKENS, edit=ablate("z", 1, position=6))
    with raises(ValueError, "position=1", "logits"):
        edit = patch("logits", None, {"position": 1}, 0.0)
        forward(PARAMS, SEED, TOKENS, edit=edit, logits_at=[-1])
    with raises(ValueError, "logits_at", 6):
        forward(PARAMS, SEED, TOKENS, logits_at=[6])
    with raises(ValueError, "W_U", (8, 11)):
        forward(random_params(NAMED["classic"]), SEED, TOKENS)


def test_toggling_64_bits_between_calls_changes_the_program():
    narrow = forward(PARAMS, SEED, TOKENS).logits
    with jax.enable_x64(True):
        wide = forward(
            jax.tree.map(lambda a: np.asarray(a, np.float64), PARAMS), SEED, np.asarray(TOKENS)
        ).logits
    assert (narrow.dtype, wide.dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose(wide, narrow, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(forward(PARAMS, SEED, TOKENS).logits, narrow)


def test_sharded_parameters_stay_where_they_are():
    mesh = jax.make_mesh((2,), ("data",))
    spread = jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, PartitionSpec())), PARAMS)
    found = forward(spread, SEED, TOKENS).logits
    assert found.sharding.device_set == set(mesh.devices.flat)
    np.testing.assert_allclose(found, forward(PARAMS, SEED, TOKENS).logits, rtol=1e-5, atol=1e-6)


def test_a_cache_can_be_donated():
    cache = empty_cache(SEED, 8)
    run = jax.jit(partial(forward, PARAMS, SEED), donate_argnums=1)
    out = run(TOKENS, cache)
    assert cache.k.is_deleted()
    np.testing.assert_allclose(out.logits, forward(PARAMS, SEED, TOKENS).logits, rtol=1e-5)
    memory: Any = run.lower(TOKENS, empty_cache(SEED, 8)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * cache.k.nbytes


def test_inside_compiled_code_the_call_is_inlined():
    """XLA makes of it the operations of the bare model, with its gradient too."""

    def operations(run: Callable[..., Any]) -> Counter[str]:
        def total(params, tokens):
            return run(params, tokens).logits.sum()

        program = jax.jit(jax.grad(total)).lower(PARAMS, TOKENS).compile()
        return Counter(re.findall(r"= \S+ ([\w-]+)\(", str(program.as_text())))

    def bare(params, tokens):
        return run_model(identity, params, SEED, Inputs(tokens, None, None, None), Compute())

    found = operations(lambda params, tokens: forward(params, SEED, tokens))
    assert found == operations(bare)
    assert found["dot"] + found["fusion"] > 10


@pytest.mark.slow
def test_it_compiles_once_under_jit_with_an_edit_as_an_argument():
    run: Any = jax.jit(lambda params, edit: forward(params, SEED, TOKENS, edit=edit).logits)
    edits = [ablate("z", 1, head=head) for head in range(3)]
    found = [run(PARAMS, edit) for edit in edits]
    assert run._cache_size() == 1
    for edit, logits in zip(edits, found, strict=True):
        expected = forward(PARAMS, SEED, TOKENS, edit=edit).logits
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


WRONG: dict[str, tuple[Any, tuple]] = {
    "a branch on the layer": (lambda site, layer, v: v * 0 if layer == 1 else v, ("layer == 1",)),
    "a branch on the value": (lambda site, layer, v: v * 0 if v.sum() > 0 else v, ("embed", "where")),
    "an index by the layer": (lambda site, layer, v: v * [1.0, 2.0][layer] if site == "z" else v, ("z",)),
    "NumPy": (lambda site, layer, v: np.asarray(v) if site == "z" else v, ("z", "traced")),
    "no change": (lambda site, layer, v: v, ("unchanged",)),
    "a site that this model lacks": (lambda site, layer, v: v * 0 if site == "rot_q" else v, ("unchanged",)),
    "an unknown site": ({"zz": jnp.zeros_like}, ("zz", "resid_pre")),
    "a mapped site that this model lacks": ({"rot_q": jnp.zeros_like}, ("rot_q", "resid_pre")),
    "a layer out of range": ({("z", 2): jnp.zeros_like}, ("layer=2", 1)),
    "a layer of the model": ({("embed", 0): jnp.zeros_like}, ("embed", "layer=0")),
    "nothing": ({}, ("unchanged",)),
    "an edit in a chain": (chain(ablate("z", 0), {"zz": jnp.zeros_like}), ("zz",)),
    "a function in a chain": (chain(ablate("z", 0), lambda site, _, v: v), ("unchanged",)),
    "an empty chain": (chain(), ("unchanged",)),
    "data that never acts": (Partial(lambda s, site, _, v: v * s if site == "zz" else v, 2.0), ("unchanged",)),
    "a branch in data": (at("z", 1, Partial(lambda s, z: z * s if z.sum() > 0 else z, 2.0)), ("z", "where")),
    "layers of a vmap": (jax.vmap(lambda head: ablate("z", 1, head=head))(jnp.arange(4)), (4,)),
    "complex values in a layer": ({("z", 1): lambda z: z.astype("complex64")}, ("z", "complex64")),
    "a list": ({("z", 1): lambda z: [z]}, ("z", "shape")),
    "None in a mapping": ({"z": lambda z: None, ("z", 1): jnp.zeros_like}, ("z", None)),
    "an edit in a mapping": ({"z": ablate("z", 1)}, ("z",)),
    "a layer in quotes": ({("z", "1"): jnp.zeros_like}, ("layer='1'",)),
    "a key of three": ({("z", 1, 2): jnp.zeros_like}, (("z", 1, 2),)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("door", [forward, score, loss])
def test_an_edit_that_cannot_act_is_a_sentence(name: str, door):
    edit, named = WRONG[name]
    with raises(ValueError, *named):
        door(PARAMS, SEED, TOKENS, edit=edit)


def test_what_is_no_edit_at_all_is_a_sentence(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    wrong: tuple[Any, ...] = 3, {"z": 0.0}
    for edit, named in zip(wrong, (("edit=3", "mapping"), ("'z'", 0.0)), strict=True):
        with raises(ValueError, *named):
            forward(PARAMS, SEED, TOKENS, edit=edit)


def test_a_mapping_edits_a_site_or_the_site_of_one_layer():
    silent = {("z", 1): lambda z: z.at[:, 2].set(0.0)}
    expected = forward(PARAMS, SEED, TOKENS, edit=ablate("z", 1, head=2)).logits
    np.testing.assert_allclose(forward(PARAMS, SEED, TOKENS, edit=silent).logits, expected)
    everywhere: Any = {"z": lambda z: z.at[:, 2].set(0.0), "logits": lambda logits: 2 * logits}
    expected = 2 * forward(PARAMS, SEED, TOKENS, edit=ablate("z", head=2)).logits
    np.testing.assert_allclose(
        forward(PARAMS, SEED, TOKENS, edit=everywhere).logits, expected, rtol=1e-6
    )
    with raises(ValueError, "'z'", (3, 4, 4)):
        forward(PARAMS, SEED, TOKENS, edit={("z", 1): lambda z: z[:3]})


def test_a_chain_takes_mappings_with_and_without_layers():
    edit = chain({"z": lambda z: 2 * z, ("z", 1): lambda z: z.at[:, 2].set(0.0)}, steer(0, D))
    by_hand = chain(at("z", None, Partial(jnp.multiply, 2.0)), ablate("z", 1, head=2), steer(0, D))
    found = forward(PARAMS, SEED, TOKENS, edit=edit).logits
    np.testing.assert_allclose(found, forward(PARAMS, SEED, TOKENS, edit=by_hand).logits, rtol=1e-5)


@pytest.mark.parametrize("capture", [True, np.array(["z", "z"]), {"z", "q"}, iter(["z", "q"])])
def test_capture_takes_any_iterable_of_names(capture):
    if capture is True:
        with raises(ValueError, "capture=True"):
            check_capture(capture, SEED, Compute())
    else:
        names = check_capture(capture, SEED, Compute())
        assert names in (("z",), ("q", "z"))  # in the order of the pass, once each


def test_other_types_are_sentences(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse them first
    given: Any = Inputs(TOKENS, None, None, None)
    with raises(ValueError, "compute is a str"):
        check_order(PARAMS, SEED, "float16")
    with raises(ValueError, "cache", "empty_cache"):
        check_shapes(PARAMS, SEED, given._replace(cache=[0]), Compute())
    with raises(ValueError, "tokens"):
        as_array("tokens", [[1, 2], [3]])
    traced = jax.jit(lambda t: forward(PARAMS, SEED, [3, t, 4]).logits)(1)  # in a list
    expected = forward(PARAMS, SEED, [3, 1, 4]).logits
    np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-6)


def test_layers_of_a_list_are_python_integers():
    def by_branch(site, layer, value):
        return value.at[:, 2].set(0.0) if site == "z" and layer == 1 else value

    found = forward(unstack(PARAMS), SEED, TOKENS, edit=by_branch).logits
    expected = forward(PARAMS, SEED, TOKENS, edit=ablate("z", 1, head=2)).logits
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_capture_all_is_every_site():
    for config, compute in ((SEED, Compute()), (MODERN, Compute(kernel="blocked"))):
        out = forward(random_params(config), config, [1, 2], capture="all", compute=compute)
        assert tuple(sorted(out.activations)) == tuple(sorted(available_sites(config, compute)))
    with raises(ValueError, "capture='z'", "all"):
        forward(PARAMS, SEED, TOKENS, capture="z")


def test_capture_goes_with_jit_and_vmap_as_the_docstring_says():
    plain = forward(PARAMS, SEED, TOKENS, capture=("z",)).activations["z"]
    jitted = jax.jit(forward, static_argnames="capture")
    found = jitted(PARAMS, SEED, TOKENS, capture=("z",)).activations["z"]
    np.testing.assert_allclose(found, plain, rtol=1e-6)
    batched = jax.vmap(partial(forward, capture=("z",)), in_axes=(None, None, 0))
    found = batched(PARAMS, SEED, jnp.stack([TOKENS] * 2)).activations["z"]
    np.testing.assert_allclose(found, [plain] * 2, rtol=1e-5, atol=1e-6)
    for form in ('jax.jit(forward, static_argnames="capture")', 'partial(forward, capture=("z",))'):
        assert form in str(forward.__doc__)
