"""Measurements during training: equal to plain numpy, and without influence on the run."""

from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Compute, Config, forward
from tests.helpers.models import ATTENTION_ONLY, MODERN, SEED, random_params
from tests.helpers.runs import Finished, folder_of, numbers
from train.__main__ import main, parse
from train.data.batches import Batch
from train.recipe import Watch
from train.watch import LOOKS, PROMPTS, repeated_tokens, watcher

pytestmark = pytest.mark.usefixtures("standard_promotion")
ROWS, CONTEXT = 3, 8


def held_out(config: Config) -> Batch:
    rng = np.random.default_rng(0)
    windows = rng.integers(0, config.n_vocab, (2, ROWS, CONTEXT + 1)).astype(np.int32)
    return Batch(windows, np.ones((2, ROWS, CONTEXT), bool))


def captured(params: Any, config: Config, rows: np.ndarray, *sites: str) -> dict[str, np.ndarray]:
    """Return the activations of each row, [row l ...]."""
    every = [forward(params, config, jnp.asarray(r), capture=sites).activations for r in rows]
    return {site: np.stack([np.asarray(shown[site]) for shown in every]) for site in sites}


def test_every_name_has_its_row():
    assert LOOKS.keys() == set(get_args(Watch))


@pytest.mark.slow
@pytest.mark.parametrize("config", [SEED, MODERN], ids=["seed", "modern"])
def test_measurements_equal_those_of_numpy(config: Config):
    params, batch = random_params(config), held_out(config)
    names = get_args(Watch)
    seen = jax.jit(watcher(names, config, batch, Compute()))(params)
    shown = captured(params, config, batch.windows[0][:, :-1], "pattern", "attn_out", "mlp_out")
    pattern = shown["pattern"]  # [row l n t s]
    later = np.arange(1, CONTEXT)
    previous = pattern[..., later, later - 1].mean((0, -1))
    entropy = -(pattern * np.log(np.where(pattern > 0, pattern, 1))).sum(-1).mean((0, -1))
    period = CONTEXT // 2
    repeats = np.asarray(repeated_tokens(config.n_vocab, period, PROMPTS))
    repeated = captured(params, config, repeats, "pattern")["pattern"]
    second = np.arange(period, CONTEXT)
    expected = {
        "previous_token": previous,
        "pattern_entropy": entropy,
        "induction": repeated[..., second, second - period + 1].mean((0, -1)),
        "attn_update_norm": np.linalg.norm(shown["attn_out"], axis=-1).mean((0, -1)),
        "mlp_update_norm": np.linalg.norm(shown["mlp_out"], axis=-1).mean((0, -1)),
    }
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_model_without_an_mlp_has_one_kind_of_update():
    look = watcher(("update-norm",), ATTENTION_ONLY, held_out(ATTENTION_ONLY), Compute())
    assert look(random_params(ATTENTION_ONLY)).keys() == {"attn_update_norm"}


def test_repeats_are_of_different_tokens_where_there_are_enough():
    tokens = np.asarray(repeated_tokens(11, 6, 4))
    np.testing.assert_array_equal(tokens[:, :6], tokens[:, 6:])
    assert all(len(set(row)) == 6 for row in tokens.tolist())
    assert len({tuple(row) for row in tokens.tolist()}) == 4
    few = np.asarray(repeated_tokens(3, 5, 2))
    assert few.shape == (2, 10)
    assert few.max() < 3


@pytest.mark.slow
def test_watching_changes_no_number_of_the_run(finished: Finished, corpus: Path):
    """The lines have lists [l][n] for heads and [l] for layers."""
    command = [*finished.command, "--name", "watched", "--runs", str(corpus.parent / "runs")]
    assert main([*command, "--watch", *get_args(Watch)]) == 0
    lines = numbers(folder_of(command))
    seen = {"induction", "previous_token", "pattern_entropy", "attn_update_norm", "mlp_update_norm"}
    watched = [line.keys() & seen for line in lines if "validation_loss" in line]
    assert watched == [seen] * 5
    assert numbers(folder_of(finished.command)) == [
        {name: value for name, value in line.items() if name not in seen} for line in lines
    ]
    for line in lines:
        for name in line.keys() & seen:
            assert np.shape(line[name]) == ((1,) if "norm" in name else (1, 2)), name


def test_padding_rows_are_not_measured():
    params, batch = random_params(SEED), held_out(SEED)
    counted = batch.counted.copy()
    counted[0, 1:] = False
    names = ("pattern-entropy", "update-norm")
    filled = watcher(names, SEED, Batch(batch.windows, counted), Compute())(params)
    alone = watcher(names, SEED, Batch(batch.windows[:, :1], counted[:, :1]), Compute())(params)
    jax.tree.map(np.testing.assert_array_equal, filled, alone)


def test_update_norms_do_not_depend_on_the_kernel():
    params, batch = random_params(SEED), held_out(SEED)
    kernels = Compute(kernel="einsum"), Compute(kernel="blocked")
    einsum, blocked = (watcher(("update-norm",), SEED, batch, how)(params) for how in kernels)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), einsum, blocked)
    parse(["seed", "--watch", "update-norm", "--compute.kernel", "blocked"])
