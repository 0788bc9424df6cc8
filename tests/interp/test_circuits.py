"""Circuits of every head at once, compared with dense matrices made head by head in numpy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.extend.core import jaxprs_in_params

from jaxformer import Config, Params, abstract, forward, init, unstack
from jaxformer.interp.circuits import (
    composition_baseline,
    composition_score,
    composition_scores,
    full_ov_circuit,
    full_qk_circuit,
    ov_circuit,
    qk_circuit,
    read_through_unembedding,
)
from jaxformer.interp.factored import FactoredMatrix
from jaxformer.interp.heads import copying_score
from tests.helpers.errors import raises
from tests.helpers.examples import examples
from tests.helpers.models import (
    ATTENTION_ONLY,
    MODERN,
    NAMED,
    SEED,
    configs,
    every_model,
    random_params,
    random_tokens,
)

GROUPED = dataclasses.replace(SEED, n_kv_heads=2)


def dense(params: Params, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return QK and OV of each head, [l n d d]."""
    attn, shared = params.blocks.attn, config.n_heads // (config.n_kv_heads or config.n_heads)
    shape = (config.n_layers, config.n_heads, config.d_model, config.d_model)
    qk, ov, after = np.zeros(shape), np.zeros(shape), post_norms(params, config)
    for l in range(config.n_layers):  # noqa: E741
        for n in range(config.n_heads):
            W_Q, W_K, W_V = (np.asarray(W[l]) for W in (attn.W_Q, attn.W_K, attn.W_V))
            qk[l, n] = W_Q[:, n] @ W_K[:, n // shared].T
            ov[l, n] = W_V[:, n // shared] @ np.asarray(attn.W_O[l, n]) @ after[l]
    return qk, ov


def post_norms(params: Params, config: Config) -> list[np.ndarray]:
    """Return the matrix of the norm after each attention layer, without its division."""
    norm, eye = params.blocks.attn_post_norm, np.eye(config.d_model)
    if norm is None:
        return [eye] * config.n_layers
    centre = eye - (1 / config.d_model if config.norm == "layer" else 0.0)
    return [centre @ np.diag(np.asarray(w) + config.norm_plus_one) for w in norm.w]


def dense_composition(params: Params, config: Config, kind: str) -> np.ndarray:
    qk, ov = dense(params, config)
    reads = {"q": qk, "k": qk.swapaxes(-2, -1), "v": ov}[kind]
    scores = np.zeros((config.n_layers, config.n_heads) * 2)
    for writer in np.ndindex(*ov.shape[:2]):
        for reader in np.ndindex(*ov.shape[:2]):
            if reader[0] > writer[0]:
                norms = np.linalg.norm(ov[writer]) * np.linalg.norm(reads[reader])
                scores[writer + reader] = np.linalg.norm(ov[writer] @ reads[reader]) / norms
    return scores


@jax.jit
def everything(params: Params, config: Config) -> dict[str, Any]:
    circuits, kinds = (ov_circuit, full_ov_circuit), "v"
    if config.qk_norm == "none":
        circuits, kinds = (*circuits, qk_circuit, full_qk_circuit), "qkv"
    scores = {kind: composition_scores(params, config, kind) for kind in kinds}
    directions = read_through_unembedding(params, config, directions=99, tokens=config.n_vocab)
    return scores | {
        "circuits": [circuit(params, config) for circuit in circuits],
        "directions": directions,
        "copying": copying_score(params, config),
    }


def check_everything(config: Config) -> None:
    params = random_params(config, dtype=jnp.float64)
    found = everything(params, config)
    qk, ov = dense(params, config)
    W_E = config.embedding_scale * np.asarray(params.W_E)
    W_U = np.asarray(params.W_E.T if params.W_U is None else params.W_U)
    full_qk, full_ov = W_E @ qk @ W_E.T, W_E @ ov @ W_U
    kinds = "qkv" if config.qk_norm == "none" else "v"
    dense_circuits = (ov, full_ov, qk, full_qk)[: len(found["circuits"])]
    assert len(dense_circuits) == (4 if kinds == "qkv" else 2)
    for circuit, full in zip(found["circuits"], dense_circuits, strict=True):
        assert circuit.A.shape[-1] <= config.d_head
        np.testing.assert_allclose(circuit.AB, full, rtol=0, atol=1e-11)
    for kind in kinds:
        expected = dense_composition(params, config, kind)
        np.testing.assert_allclose(found[kind], expected, rtol=0, atol=1e-11)
    eigenvalues: Any = np.linalg.eigvals(full_ov) if config.n_layers else full_ov[..., 0]
    total = np.abs(eigenvalues).sum(-1)
    np.testing.assert_allclose(found["copying"], eigenvalues.sum(-1).real / total, atol=1e-8)
    check_directions(found["directions"], full_ov, config)


def check_directions(directions: Any, full_ov: np.ndarray, config: Config) -> None:
    """The tokens of all directions together give the full OV circuit."""
    directions = jax.tree.map(np.asarray, directions)
    read, written = np.zeros((2, *directions.read.shape[:3], config.n_vocab))
    np.put_along_axis(read, directions.read, directions.read_value, -1)
    np.put_along_axis(written, directions.written, directions.written_value, -1)
    full = (directions.strength[..., None] * read).swapaxes(-2, -1) @ written
    np.testing.assert_allclose(full, full_ov, rtol=0, atol=1e-11)
    assert directions.strength.shape[-1] == min(config.d_head, config.d_model)
    for falling in (directions.strength, directions.read_value, directions.written_value):
        assert (np.diff(falling) <= 0).all()
    assert (written.max(-1) >= -written.min(-1)).all()


@every_model
def test_circuits_equal_the_dense_matrices_of_each_head(name: str, x64):
    check_everything(NAMED[name])


@pytest.mark.slow
@given(config=configs())
@examples(4)
def test_circuits_of_any_config_equal_the_dense_matrices(config: Config, x64):
    check_everything(config)


def test_circuits_are_what_the_forward_pass_computes(x64):
    """Without norms and positions, a score is x·QK·x, and the output of a head is the average of x·OV."""
    params = random_params(GROUPED, dtype=jnp.float64)
    sites = ("resid_pre", "scores", "pattern", "head_out")
    seen = forward(params, GROUPED, random_tokens(GROUPED, 5), capture=sites).activations
    state = seen["resid_pre"]
    qk, ov = qk_circuit(params, GROUPED).AB, ov_circuit(params, GROUPED).AB
    state = state[:, None]
    scores = state @ qk @ state.mT * GROUPED.score_scale
    visible = np.tril(np.ones((5, 5), bool))
    np.testing.assert_allclose(seen["scores"][..., visible], scores[..., visible], atol=1e-12)
    written = (seen["pattern"] @ (state @ ov)).swapaxes(1, 2)
    np.testing.assert_allclose(seen["head_out"], written, atol=1e-12)


def zeros(config: Config) -> Params:
    return jax.tree.map(lambda array: jnp.zeros(array.shape), abstract(config))


def test_heads_set_by_hand_compose_as_they_were_set(x64):
    """Layer 0, head 2 writes coordinate 5; layer 1 reads it: head 0 to query, head 1 for keys, head 3 as value."""
    config = ATTENTION_ONLY
    params = zeros(config)
    attn = params.blocks.attn
    attn = attn._replace(
        W_V=attn.W_V.at[0, 0, 2, 0].set(1.0).at[1, 5, 3, 0].set(1.0),
        W_O=attn.W_O.at[0, 2, 0, 5].set(1.0).at[1, 3, 0, 1].set(1.0),
        W_Q=attn.W_Q.at[1, 5, 0, 0].set(1.0).at[1, 7, 1, 0].set(1.0),
        W_K=attn.W_K.at[1, 7, 0, 0].set(1.0).at[1, 5, 1, 0].set(1.0),
    )
    params = params._replace(blocks=params.blocks._replace(attn=attn))
    found = everything(params, config)
    for kind, reader in (("q", 0), ("k", 1), ("v", 3)):
        scores = np.zeros((2, 4, 2, 4))
        scores[0, 2, 1, reader] = 1.0
        np.testing.assert_array_equal(found[kind], scores)
    reads_0, writes_5 = jnp.eye(8)[:, :1], jnp.eye(8)[5:6]
    for reader, score in ((writes_5.T, 1.0), (jnp.eye(8)[:, 4:5], 0.0)):
        writer = FactoredMatrix(reads_0, writes_5)
        assert float(composition_score(writer, FactoredMatrix(reader, jnp.eye(8)[1:2]))) == score


@pytest.mark.slow
def test_chance_is_one_over_the_root_of_the_width():
    """The mean square of random matrices' scores is exactly 1/d; the scores of a new model are near the mean."""
    config = dataclasses.replace(SEED, d_model=48, d_head=6, n_heads=6)
    key = jax.random.key(1)
    mean, std = jax.jit(composition_baseline, static_argnames="samples")(config, key, samples=400)
    assert float(mean**2 + std**2) == pytest.approx(1 / 48, rel=0.02)
    assert 0.0 < float(std) < 0.2 * float(mean)
    fresh = jax.jit(lambda p: composition_scores(p, config, "v"))(init(config, jax.random.key(0)))
    later = np.asarray(fresh)[0, :, 1]
    assert later.mean() == pytest.approx(float(mean), abs=float(std))
    assert later.std() == pytest.approx(float(std), rel=0.5)
    with raises(ValueError, "samples=1", 2):
        composition_baseline(config, key, samples=1)


def shapes(jaxpr: Any) -> set[tuple[int, ...]]:
    """Return the shapes of all values in a program and its inner programs."""
    found = {v.aval.shape for e in jaxpr.eqns for v in e.outvars}
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            found |= shapes(inner)
    return found


def test_no_d_by_d_or_v_by_v_matrix_is_formed():
    config = dataclasses.replace(MODERN, d_model=23, d_head=4, n_vocab=37)
    params = random_params(config)

    def run(params):
        compositions = [composition_scores(params, config, kind) for kind in "qkv"]
        circuit = full_ov_circuit(params, config)
        return compositions, circuit, circuit.norm(), circuit.svd(), circuit.T @ circuit

    formed = shapes(jax.make_jaxpr(run)(params).jaxpr)
    assert (37, 4) in {shape[-2:] for shape in formed}
    assert not {(23, 23), (37, 37)} & {shape[-2:] for shape in formed}
    copying = shapes(jax.make_jaxpr(lambda p: copying_score(p, config))(params).jaxpr)
    assert (37, 37) not in {shape[-2:] for shape in copying}


@pytest.mark.slow
def test_scores_have_derivatives(x64):
    """Compare with finite differences along a random direction, for heads wider than the stream."""
    config = dataclasses.replace(GROUPED, d_head=12)
    params, direction = (random_params(config, seed, jnp.float64) for seed in (0, 1))

    @jax.jit
    def total(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return composition_scores(moved, config, "k").sum() + copying_score(moved, config).sum()

    slope = (total(1e-6) - total(-1e-6)) / 2e-6
    assert float(jax.jit(jax.grad(total))(0.0)) == pytest.approx(float(slope), rel=1e-5)


def test_a_direction_lists_tokens_at_both_ends():
    """One head: reads token 1 minus token 3, writes twice token 4 minus token 0."""
    config = dataclasses.replace(ATTENTION_ONLY, n_layers=1, n_heads=1, d_head=1, n_vocab=8)
    params = zeros(config)
    attn = params.blocks.attn
    attn = attn._replace(
        W_V=attn.W_V.at[0, 1].set(-1.0).at[0, 3].set(1.0),
        W_O=attn.W_O.at[0, 0, 0, 4].set(-2.0).at[0, 0, 0, 0].set(1.0),
    )
    params = params._replace(
        W_E=jnp.eye(8), W_U=jnp.eye(8), blocks=params.blocks._replace(attn=attn)
    )
    read = jax.jit(read_through_unembedding, static_argnames=("tokens", "negative"))
    for negative, tokens, values in ((False, (1, 4), (1, 2)), (True, (3, 0), (-1, -1))):
        ends = read(params, config, tokens=1, negative=negative)
        assert (ends.read.item(), ends.written.item()) == tokens
        found = [one.item() for one in (ends.read_value, ends.written_value, ends.strength)]
        expected = values[0] / np.sqrt(2), values[1] / np.sqrt(5), np.sqrt(2 * 5)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@jax.jit
def some(params: Params, config: Config) -> tuple[jax.Array, jax.Array]:
    return composition_scores(params, config, "k"), copying_score(params, config)


def test_scores_can_be_vmapped_over_models():
    both = jax.tree.map(lambda *x: np.stack(x), *(random_params(GROUPED, seed) for seed in (0, 1)))
    read = jax.vmap(some, in_axes=(0, None))(jax.tree.map(jnp.asarray, both), GROUPED)
    for found, alone in zip(read, some(random_params(GROUPED, 1), GROUPED), strict=True):
        np.testing.assert_allclose(found[1], alone, rtol=1e-5, atol=1e-6)


def test_scores_of_bfloat16_parameters_are_float32():
    params = random_params(GROUPED, dtype=jnp.bfloat16)
    exact = some(jax.tree.map(lambda x: x.astype(jnp.float32), params), GROUPED)
    for found, wide in zip(some(params, GROUPED), exact, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wide, rtol=1e-5, atol=1e-6)


def test_wrong_arguments_are_refused():
    params = random_params(SEED)
    with raises(ValueError, "kind='o'", "'q'", "'k'", "'v'"):
        composition_scores(params, SEED, "o")
    with raises(ValueError, "init"):
        qk_circuit(unstack(params), SEED)
    with raises(ValueError, "blocks.attn.W_K", "(2, 8, 2, 4)", "(2, 8, 4, 4)"):
        ov_circuit(params, GROUPED)
    normed = dataclasses.replace(SEED, qk_norm="head")
    for refused in (qk_circuit, full_qk_circuit, composition_scores):
        with raises(ValueError, 'qk_norm="head"', "ov_circuit"):
            refused(random_params(normed), normed)
    for name in ("directions", "tokens"):
        with raises(ValueError, f"{name}=0", 1):
            read_through_unembedding(params, SEED, **{name: 0})  # pyright: ignore[reportArgumentType]
