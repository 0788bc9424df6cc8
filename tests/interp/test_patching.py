"""Sweeps: each number equals that of the naive loop, with one edited pass for each part."""

import dataclasses
import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.tree_util import Partial

from jaxformer import Compute, Config, Params, forward, unstack
from jaxformer.interp.edit import patch, patch_layers
from jaxformer.interp.engine.memory import MAX_ENTRY_LAYERS
from jaxformer.interp.patching import patch_sweep
from jaxformer.interp.paths import path_patch
from jaxformer.sites import AXES, MODEL_SITES
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.models import NAMED, SEED, compiled_flops, configs, random_params
from tests.helpers.pairs import LENGTH, close, enough, metric, texts

MODERN = NAMED["modern"]
NAMES = {"t": "position", "s": "source", "n": "head", "k": "head", "f": "neuron"}
Runs = tuple[Params, Config, jax.Array, jax.Array]


def model_and_texts(config: Config = MODERN, dtype: Any = jnp.float64) -> Runs:
    """Return a model, its clean and its corrupted text."""
    return random_params(config, dtype=dtype), config, *texts(config)


def everywhere(site: str) -> tuple[str, ...]:
    """Return all names of the axes of a site."""
    own = tuple(NAMES[letter] for letter in AXES[site].split() if letter in NAMES)
    return own if site in MODEL_SITES else ("layer", *own)


def naive(params: Any, config: Config, clean: Any, corrupted: Any, site: str, by: tuple[str, ...]):
    """Run one edited pass for each part, compiled once."""
    values = forward(params, config, clean, capture=(site,)).activations[site]

    @jax.jit
    def one(index):
        index = dict(zip(by, index, strict=True))
        layer = index.pop("layer", None)
        if layer is not None:
            edit = patch(site, layer, index, values[layer])
        elif site in MODEL_SITES:
            edit = patch(site, None, index, values)
        else:
            edit = patch_layers(site, index, values)
        return metric(forward(params, config, corrupted, edit=edit).logits)

    letters = {name: letter for letter, name in NAMES.items() if letter in AXES[site]}
    sizes = {"t": LENGTH, "s": LENGTH, **config.sizes}
    shape = [sizes["l" if name == "layer" else letters[name]] for name in by]
    cells = [jnp.array(cell, jnp.int32) for cell in np.ndindex(*shape)]
    return np.array([one(cell) for cell in cells]).reshape(shape)


def check(runs: Runs, site: str, by: tuple[str, ...]) -> None:
    expected = naive(*runs, site, by)
    found = patch_sweep(*runs, metric, site, by)
    np.testing.assert_allclose(found, expected, **close, err_msg=f"{site} {by}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("modern", ("k", "pattern", "post")),
        ("classic", ("resid_mid", "head_out", "pos_embed")),
        ("parallel", ("resid_pre", "mlp_out", "logits")),
        ("gemma", ("attn_post_scale", "scores", "embed")),
        ("olmo", ("head_out", "q", "mlp_post_scale")),
    ],
)
def test_a_sweep_equals_the_naive_loop(name: str, sites: tuple[str, ...], x64):
    for site in sites:
        check(model_and_texts(NAMED[name]), site, everywhere(site))


@pytest.mark.slow
def test_by_may_omit_axes_and_have_any_order(x64):
    for by in ((), ("position",), ("head", "layer")):
        check(model_and_texts(), "z", by)


@pytest.mark.slow(unless=("z",))
@pytest.mark.parametrize("site", ["z", "pattern", "resid_pre", "final"])
def test_logits_at_gives_the_same_as_a_metric_that_indexes_the_logits(site: str, x64):
    """At sites after the layers, positions are those of logits_at."""
    runs, by, some = model_and_texts(), everywhere(site), jnp.array([3, -1])
    found = patch_sweep(*runs, metric, site, by, logits_at=some)
    every = patch_sweep(*runs, lambda logits: metric(logits[some]), site, by)
    np.testing.assert_allclose(found, every[some] if site == "final" else every, **close)


@pytest.mark.slow
def test_logits_at_gives_the_same_paths(x64):
    runs, some = model_and_texts(), jnp.array([3, -1])
    every = path_patch(*runs, lambda logits: metric(logits[some]), "k")
    np.testing.assert_allclose(path_patch(*runs, metric, "k", logits_at=some), every, **close)


@pytest.mark.slow
def test_patching_a_site_after_the_layers_runs_no_layer_again():
    """If layers are most of the work, the sweep costs little more than its two runs."""
    config = dataclasses.replace(MODERN, d_mlp=1000)
    params, _, *pair = model_and_texts(config, jnp.float32)

    def flops(site: str) -> float:
        def sweep(params: Params, clean: jax.Array, corrupted: jax.Array) -> jax.Array:
            return patch_sweep(params, config, clean, corrupted, metric, site, ("position",))

        return compiled_flops(sweep, params, *pair)

    one = compiled_flops(lambda params, text: forward(params, config, text).logits, params, pair[0])
    for site in ("final_scale", "final", "logits"):
        assert flops(site) < 2.5 * one, site
    assert flops("resid_post") > 4 * one


@pytest.mark.slow
@examples(4)
@given(config=configs())
def test_any_model_can_be_swept(config: Config):
    site = "resid_post" if config.n_layers else "embed"
    with jax.enable_x64(True):
        check(model_and_texts(config), site, everywhere(site))


class Unhashable:
    """A metric that is not hashable, such as an object with arrays."""

    __hash__: Any = None

    def __call__(self, logits: jax.Array) -> jax.Array:
        return logits[-1, 0]


NONE = dataclasses.replace(MODERN, n_layers=0)
EMPTY = {"params": random_params(NONE), "config": NONE}
REFUSED = [
    ({"site": "resid"}, ("resid", "embed", "resid_pre")),
    ({"site": "pos_embed", "by": ("position",)}, ("pos_embed", "resid_pre")),
    ({"by": ("layer", "token")}, ("resid_pre", "token", "layer", "position")),
    ({"by": ("position", "position")}, ("by", "position")),
    ({"by": "layer"}, ("by='layer'", "('layer',)")),
    ({"site": "embed"}, ("embed", "layer", "by")),
    ({"clean": jnp.zeros(4, jnp.int32)}, ("clean", "(4,)", "corrupted", "(5,)")),
    ({"clean": jnp.full(5, 11)}, (11, 0)),
    ({"clean": jnp.zeros(5)}, ("clean", "(5,)", "float32")),
    ({"corrupted": jnp.zeros(0, jnp.int32)}, ("corrupted",)),
    ({"metric": lambda logits: logits[-1]}, ("metric", "(11,)", "float32")),
    ({"metric": lambda logits: logits.argmax()}, ("metric", "()", "int32")),
    ({"logits_at": jnp.array([5])}, ("logits_at", 5)),
    ({"memory": 1000}, ("memory=1000",)),
    ({"site": "pattern", "compute": Compute(kernel="fused")}, ("kernel='fused'", "pattern", "kernel='einsum'")),
    ({"memory": 1e9}, ("memory=1000000000.0", 1)),
    ({"metric": 3}, ("metric=3",)),
    ({"metric": Partial(metric, "x")}, ("metric", "'x'", "functools.partial")),
    ({"metric": lambda logits: (logits[-1, 0],)}, ("metric", "tuple")),
    ({"metric": Partial(Unhashable())}, ("metric", "Unhashable", "jax.tree_util.Partial")),
    (EMPTY, ("resid_pre", "n_layers=0")),
    (EMPTY | {"by": ()}, ("resid_pre", "n_layers=0")),
    ({"params": unstack(random_params(MODERN))}, ("init",)),
    ({"config": SEED}, ("blocks.attn.W_K",)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("change", "named"), REFUSED)
def test_wrong_arguments_are_refused(change: dict, named: tuple):
    clean, corrupted = texts(MODERN)
    arguments: dict[str, Any] = {"params": random_params(MODERN), "config": MODERN}
    arguments |= {"clean": clean, "corrupted": corrupted, "metric": metric, "site": "resid_pre"}
    with raises(ValueError, *named):
        inspect.unwrap(patch_sweep)(**arguments | change)


@pytest.mark.slow
def test_a_batch_is_one_metric_of_all_its_sequences(x64):
    config, by = NAMED["classic"], ("layer", "head")
    params, pairs = random_params(config, dtype=jnp.float64), texts(config, 2)
    each = [
        patch_sweep(params, config, *pair, lambda logits: logits[-1, 2], "z", by)
        for pair in zip(*pairs, strict=True)
    ]
    both = patch_sweep(params, config, *pairs, lambda logits: logits[:, -1, 2].mean(), "z", by)
    np.testing.assert_allclose(both, sum(each) / 2, **close)


@pytest.mark.slow
def test_a_sweep_works_under_jit_vmap_and_grad(x64):
    params, pairs = random_params(MODERN, dtype=jnp.float64), texts(MODERN, 2)

    def last(logits):
        return logits[-1, 2]

    def one(clean, corrupted, params=params):
        return patch_sweep(params, MODERN, clean, corrupted, last, "z", ("layer", "head"))

    found = jax.jit(jax.vmap(one))(*pairs)
    expected = [one(*pair) for pair in zip(*pairs, strict=True)]
    np.testing.assert_allclose(found, expected, **close)

    def total(scale):
        scaled = params._replace(W_E=params.W_E * scale)
        return one(pairs[0][0], pairs[1][0], scaled).sum()

    slope = jax.grad(total)(1.0)
    by_hand = (total(1.0 + 1e-6) - total(1.0 - 1e-6)) / 2e-6
    np.testing.assert_allclose(slope, by_hand, rtol=1e-6)


@pytest.mark.slow
def test_cells_of_a_deep_model_enter_at_few_layers(x64):
    """With more layers than entry layers, some cells enter before the layer that they change."""
    config = dataclasses.replace(MODERN, n_layers=2 * MAX_ENTRY_LAYERS + 1)
    params = jax.tree.map(lambda array: 0.3 * array, random_params(config, dtype=jnp.float64))
    check((params, config, *texts(config)), "resid_mid", ("position", "layer"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "patched", [partial(patch_sweep, site="resid_pre"), partial(path_patch, receiver="k", through_mlps=True)],
    ids=["sweep", "paths"],
)  # fmt: skip
def test_a_memory_budget_is_kept_and_changes_nothing(patched: Any):
    sizes = {"d_model": 32, "d_mlp": 128, "n_layers": 3}
    params, config, *pair = model_and_texts(dataclasses.replace(MODERN, **sizes), jnp.float32)
    given = params, *(jnp.tile(text, 8) for text in pair)

    def swept(params: Any, *pair: Any, memory: int = 2**30):
        return patched(params, config, *pair, metric, memory=memory)

    plain = swept(*given)
    with raises(ValueError, "memory=1") as refused:
        swept(*given, memory=1)
    least = enough(refused.value)
    with raises(ValueError, f"memory={least - 1}", least):
        swept(*given, memory=least - 1)
    for memory in (least, 3 * least):
        program = jax.jit(partial(swept, memory=memory)).lower(*given).compile()
        np.testing.assert_allclose(program(*given), plain, rtol=1e-4, atol=1e-4)
        analysis: Any = program.memory_analysis()
        assert analysis.temp_size_in_bytes + analysis.output_size_in_bytes <= memory


@pytest.mark.slow
def test_new_metric_arguments_recompile_nothing(x64):
    traced, sweep = [], partial(patch_sweep, *model_and_texts(), site="z", by=("layer", "head"))

    def logit(answer: Any, logits: jax.Array, *, factor: Any = 1.0) -> jax.Array:
        traced.append(answer)
        return factor * logits[-1, answer]

    def found(answer: int) -> jax.Array:
        return sweep(Partial(logit, jnp.int32(answer), factor=2.0))

    for answer in (2, 3):
        plain = sweep(lambda logits, own=answer: 2 * logits[-1, own])
        np.testing.assert_allclose(found(answer), plain, **close)
    once = len(traced)
    found(4)
    assert len(traced) == once


@pytest.mark.slow
def test_a_progress_bar_changes_nothing(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were a terminal
    sweep = partial(patch_sweep, *model_and_texts(dtype=jnp.float32), metric, "z", everywhere("z"))
    np.testing.assert_allclose(sweep(progress=True), sweep(), rtol=1e-5, atol=1e-5)
    captured = capsys.readouterr()
    assert not captured.out
    assert "100%" in captured.err
