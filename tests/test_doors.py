"""Every public function that takes params and config refuses them in the other order, with a sentence."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from jaxformer import available_sites, export, forward, identity, save
from jaxformer.pretrained.exporting import foreign_tensors
from jaxformer.pretrained.families import FAMILIES
from tests.helpers.errors import raises
from tests.helpers.models import SEED, random_params
from tests.test_floors import MODULES

INNER = ("jaxformer.model.", "jaxformer.interp.engine.")
"""Packages whose functions are called within others, which have checked the arguments."""
INNER_MODULES = (
    "jaxformer.decoding.loop",
    "jaxformer.decoding.prefill",
    "jaxformer.decoding.request",
)


def doors() -> dict[str, Callable[..., Any]]:
    """The public functions that take params and then config, by module and name."""
    found: dict[str, Callable[..., Any]] = {"jaxformer.model.transformer.forward": forward}
    for module in MODULES:
        if not module.startswith("jaxformer") or module.startswith((*INNER, *INNER_MODULES)):
            continue
        for name, value in vars(importlib.import_module(module)).items():
            if not inspect.isfunction(value) or name.startswith("_") or value.__module__ != module:
                continue
            if [*inspect.signature(value).parameters][:2] == ["params", "config"]:
                found[f"{module}.{name}"] = value
    return found


DOORS = doors()

TOKENS, OTHER = jnp.array([3, 1, 4]), jnp.array([2, 1, 4])
KEY = jax.random.key(0)
CONFIG = dataclasses.replace(SEED, norm="layer", bias="all", unembed_bias=True)
"""A model that every fold takes."""
STACK = jnp.ones((2, 3, CONFIG.d_model))


def metric(logits: Any) -> Any:
    return logits[-1, 2]


def activations() -> dict[str, Any]:
    """All sites of the model."""
    return forward(
        random_params(CONFIG), CONFIG, TOKENS, capture=available_sites(CONFIG)
    ).activations


FURTHER: dict[str, Callable[[], tuple[Any, ...]]] = {
    "along_line": lambda: (TOKENS, OTHER, 2, identity, lambda edit: jnp.zeros(())),
    "apply_norm": lambda: (activations(), STACK),
    "attribution_patch": lambda: (TOKENS, OTHER, metric, ("z",)),
    "beam_search": lambda: (TOKENS, 2, 2),
    "direct_logit_attribution": lambda: (activations(), STACK, 1),
    "edge_attribution": lambda: (TOKENS, OTHER, metric),
    "final_bias": lambda: (1,),
    "generate": lambda: (TOKENS, 2, KEY),
    "gradients": lambda: (TOKENS, metric, ("z",)),
    "head_scores": lambda: (TOKENS, "previous_token"),
    "jacobian": lambda: (TOKENS, ("resid_pre", 0, 1), ("resid_post", 1, 2)),
    "jvp_between": lambda: (TOKENS, ("resid_pre", 0), ("resid_post", 1), STACK[0]),
    "logit_directions": lambda: (activations(), 1),
    "logit_lens": lambda: (STACK,),
    "lower": lambda: (TOKENS, 2, KEY),
    "measure": lambda: (TOKENS, metric),
    "neuron_results": lambda: (activations(), 0),
    "patch_sweep": lambda: (TOKENS, OTHER, metric, "z", ("layer",)),
    "path_patch": lambda: (TOKENS, OTHER, metric, "q"),
    "stream_tokens": lambda: (TOKENS, 2, KEY),
    "vjp_between": lambda: (TOKENS, ("resid_pre", 0), ("resid_post", 1), STACK[0]),
}
"""The arguments after params and config, of functions that need others than tokens or activations."""


def further(door: Callable[..., Any]) -> tuple[Any, ...]:
    """Plausible arguments after params and config."""
    if door.__name__ in FURTHER:
        return FURTHER[door.__name__]()
    parameters = [*inspect.signature(door).parameters.values()][2:]
    needed = [one.name for one in parameters if one.default is one.empty]
    usual = {"tokens": lambda: TOKENS, "activations": activations}
    return tuple(usual[name]() for name in needed)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the type checks that only tests have."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def run(door: Callable[..., Any], *arguments: Any) -> None:
    """Call a function; of a generator, run it to its first item."""
    out = door(*arguments)
    if inspect.isgenerator(out):
        next(out)


@pytest.mark.parametrize("name", DOORS)
def test_swapped_arguments_are_refused_with_their_order(name: str):
    door, params = DOORS[name], random_params(CONFIG)
    with raises(ValueError, "params is a Config", "config is a Params", "params, config"):
        run(door, CONFIG, params, *further(door))


@pytest.mark.parametrize("name", DOORS)
def test_in_their_order_these_arguments_are_accepted(name: str):
    run(DOORS[name], random_params(CONFIG), CONFIG, *further(DOORS[name]))


def test_save_and_export_refuse_swapped_arguments(tmp_path: Path):
    params: Any = random_params(SEED)
    config: Any = SEED
    with raises(ValueError, "params is a Config", "config is a Params", "params, config"):
        save(tmp_path / "model", config, params)
    with raises(ValueError, "params is a Config", "config is a Params", "params, config"):
        export(tmp_path / "model", config, params, None, "llama")
    with raises(ValueError, "params is a Config", "config is a Params", "params, config"):
        foreign_tensors(FAMILIES["llama"], config, params)
    assert not (tmp_path / "model").exists()


def test_every_row_of_the_table_is_of_a_function():
    assert FURTHER.keys() <= {name.rpartition(".")[2] for name in DOORS}
