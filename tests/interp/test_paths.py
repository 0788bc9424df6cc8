"""Path patching: each number equals that of three forward passes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Config, forward
from jaxformer.interp.edit import chain, patch, patch_layers
from jaxformer.interp.paths import path_patch
from tests.helpers.errors import raises
from tests.helpers.models import NAMED, random_params
from tests.helpers.pairs import close, metric, texts


def naive_path(
    params: Any, config: Config, clean: Any, corrupted: Any, kind: str, sender: Any, reader: Any, mlps: bool
) -> jax.Array:  # fmt: skip
    """Use three passes: freeze every head but the sender, capture what the receiver then reads, and patch it in."""
    sites = ("head_out", "mlp_out", kind)
    before = forward(params, config, corrupted, capture=sites).activations
    new = forward(params, config, clean, capture=("head_out",)).activations["head_out"]
    heads = before["head_out"].at[sender[0], :, sender[1]].set(new[sender[0], :, sender[1]])
    frozen = [patch_layers("head_out", None, heads)]
    if config.d_mlp and not mlps:
        frozen.append(patch_layers("mlp_out", None, before["mlp_out"]))
    out = forward(params, config, corrupted, capture=(kind,), edit=chain(*frozen))
    seen = out.activations[kind][reader[0]]
    edit = patch(kind, reader[0], {"head": reader[1]}, seen)
    return metric(forward(params, config, corrupted, edit=edit).logits)


@pytest.mark.slow(unless=("olmo-k-True",))
@pytest.mark.parametrize(
    ("name", "kind", "mlps"),
    [("modern", "k", False), ("classic", "q", True), ("parallel", "v", False), ("gemma", "q", False),
     ("olmo", "k", True)],
)  # fmt: skip
def test_a_path_equals_three_passes(name: str, kind: str, mlps: bool, x64):
    config = dataclasses.replace(NAMED[name], n_layers=3)
    params = random_params(config, dtype=jnp.float64)
    clean, corrupted = texts(config)
    found = path_patch(params, config, clean, corrupted, metric, kind, through_mlps=mlps)
    readers = config.sizes["n" if kind == "q" else "k"]
    assert found.shape == (3, 4, 3, readers)
    no_path = np.arange(3)[:, None] >= np.arange(3)
    np.testing.assert_array_equal(np.isnan(found).all(axis=(1, 3)), no_path)
    np.testing.assert_array_equal(np.isnan(found).any(axis=(1, 3)), no_path)
    one = jax.jit(lambda s, r: naive_path(params, config, clean, corrupted, kind, s, r, mlps))
    for sender, reader in (((0, 1), (1, 0)), ((0, 3), (2, 1)), ((1, 2), (2, readers - 1))):
        expected = one(jnp.array(sender), jnp.array(reader))
        np.testing.assert_allclose(found[*sender, *reader], expected, **close)


def test_wrong_arguments_are_refused():
    config = NAMED["modern"]
    clean, corrupted = texts(config)
    with raises(ValueError, "receiver='o'", "q", "k", "v"):
        path_patch(random_params(config), config, clean, corrupted, metric, "o")
    short = dataclasses.replace(config, n_layers=1)
    with raises(ValueError, "n_layers=1"):
        path_patch(random_params(short), short, clean, corrupted, metric)
