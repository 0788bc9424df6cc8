"""The tools of interp on models with known circuits: they find these circuits and nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import forward
from jaxformer.interp.attribution import attribution_patch
from jaxformer.interp.circuits import (
    composition_baseline,
    composition_scores,
    full_ov_circuit,
    full_qk_circuit,
)
from jaxformer.interp.components import component_labels
from jaxformer.interp.decompose import (
    accumulated_resid,
    decompose_resid,
    head_results,
    neuron_results,
)
from jaxformer.interp.edit import ablate, freeze_pattern, knock_out, patch, steer
from jaxformer.interp.heads import (
    copying_score,
    duplicate_token_score,
    head_scores,
    induction_score,
    pattern_entropy,
    previous_token_score,
)
from jaxformer.interp.lens import direct_logit_attribution, logit_directions, logit_lens
from jaxformer.interp.patching import patch_sweep
from jaxformer.interp.paths import path_patch
from tests.helpers import circuits
from tests.helpers.circuits import AND, ANSWER, FIRST, ONE, OR, PREVIOUS, SECOND, SPARE, THEN, V

PERIOD = 6
REPEATS = jnp.array([3, 1, 4, 0, 5, 2] * 2, jnp.int32)
# In the clean text the last token occurred before, followed by 4. In the corrupted text it did not, so the induction
# head attends to the token itself.
CLEAN = jnp.array([3, 1, 4, 0, 5, 3, 1], jnp.int32)
CORRUPTED = CLEAN.at[1].set(2)
LAST = len(CLEAN) - 1

INDUCTION = circuits.induction()
HEADS = INDUCTION.heads
PREVIOUS_HEAD, INDUCTION_HEAD = HEADS["previous"], HEADS["induction"]
MODEL = INDUCTION.params, INDUCTION.config


def right_rather_than_wrong(logits: jax.Array) -> jax.Array:
    """Return the metric: 1 in the clean run, -1 in the corrupted run."""
    return logits[-1, 4] - logits[-1, 1]


def only(shape: tuple[int, ...], *places: tuple[int, ...], low: float = 0.0) -> np.ndarray:
    """Return an array with 1 at these indices and `low` everywhere else."""
    expected = np.full(shape, low)
    for place in places:
        expected[place] = 1.0
    return expected


def run(circuit: circuits.Circuit, tokens: Any, *capture: str, **options: Any) -> Any:
    return forward(circuit.params, circuit.config, tokens, capture=capture, **options)


def near(found: Any, expected: Any, tolerance: float = 1e-3) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance)


# --- the models do what they were built for -----------------------------------------------------------------------


def test_induction_predicts_the_token_after_the_last_occurrence():
    out = run(INDUCTION, REPEATS, "pattern")
    answers = np.asarray(out.logits.argmax(-1))
    np.testing.assert_array_equal(answers[PERIOD:-1], REPEATS[PERIOD + 1 :])
    np.testing.assert_array_equal(
        answers[:PERIOD], REPEATS[:PERIOD]
    )  # there is no earlier occurrence yet
    assert out.activations["pattern"].max(-1).min() > 0.99
    near(right_rather_than_wrong(run(INDUCTION, CLEAN).logits), 1)
    near(right_rather_than_wrong(run(INDUCTION, CORRUPTED).logits), -1)


def test_previous_token_predicts_the_token_before():
    circuit = circuits.previous_token()
    out = run(circuit, CLEAN, "pattern")
    near(out.logits[1:], np.eye(V)[np.asarray(CLEAN[:-1])])
    assert out.activations["pattern"].max(-1).min() > 0.99


def test_copying_heads_raise_and_lower_what_they_see():
    circuit = circuits.copying()
    out = run(circuit, jnp.array([4, 4]), "z", "attn_out")
    near(out.logits[-1], np.eye(V)[5])  # one raises 4, one lowers it, one raises 5
    for name, logits in (("copies", np.eye(V)[4]), ("suppresses", -np.eye(V)[4])):
        rest = [head for other, (_, head) in circuit.heads.items() if other != name]
        alone = run(circuit, jnp.array([4, 4]), edit=ablate("z", 0, head=jnp.array(rest)))
        near(alone.logits[-1], logits)


@pytest.mark.slow
def test_the_conjunction_is_true_of_both_features_alone():
    circuit = circuits.conjunction()
    pairs = jnp.array([[1, 1], [FIRST, 1], [1, SECOND], [FIRST, SECOND], [SECOND, FIRST]])
    out = jax.vmap(lambda tokens: run(circuit, tokens, "post"))(pairs)
    post = out.activations["post"][:, 0, -1]
    near(post[:, AND], [0, 0, 0, 1, 0])
    near(post[:, OR], [0, 1, 1, 2, 0])
    near(post[:, ONE], [0, 0, 1, 1, 0])
    near(out.logits[:, -1], only((5, V), (3, THEN)))


# --- heads -----------------------------------------------------------------------------------------------------


def test_each_score_finds_its_head_and_no_other():
    pattern = run(INDUCTION, REPEATS, "pattern").activations["pattern"]
    near(previous_token_score(pattern), only((2, 2), PREVIOUS_HEAD))
    near(duplicate_token_score(pattern, REPEATS), only((2, 2), HEADS["duplicate"]))
    near(induction_score(pattern, PERIOD), only((2, 2), INDUCTION_HEAD))
    near(pattern_entropy(pattern), np.zeros((2, 2)))
    lone = circuits.previous_token()
    pattern = run(lone, CLEAN, "pattern").activations["pattern"]
    near(previous_token_score(pattern), only((1, 2), lone.heads["previous"]), 0.01)


@pytest.mark.parametrize(
    ("head", "share"), [("previous", 11 / 12), ("duplicate", 6 / 12), ("induction", 6 / 12)]
)
def test_targets_are_met_by_their_heads_over_several_prompts(head: str, share: float):
    """The score is the share of queries with such a key; at others these heads attend to their own token."""
    target: Any = head if head == "induction" else f"{head}_token"
    prompts = jnp.stack([REPEATS, (REPEATS + 1) % V])
    near(head_scores(*MODEL, prompts, target), share * only((2, 2), HEADS[head]))
    near(head_scores(*MODEL, prompts, target, exclude_current=True)[HEADS[head]], 1)


def test_the_copying_score_tells_copying_from_suppressing_from_neither():
    near(copying_score(*MODEL), only((2, 2), INDUCTION_HEAD))
    circuit = circuits.copying()
    near(copying_score(circuit.params, circuit.config), [[1, -1, 0, 0]])


# --- edits -----------------------------------------------------------------------------------------------------


def test_only_ablating_the_two_heads_of_the_circuit_matters():
    def without(head: jax.Array) -> jax.Array:
        return run(INDUCTION, CLEAN, edit=ablate("z", head[0], head=head[1])).logits[-1]

    heads = jnp.array(list(HEADS.values()))
    logits = dict(zip(HEADS, np.asarray(jax.vmap(without)(heads)), strict=True))
    near(logits["duplicate"], np.eye(V)[4])
    near(logits["current"], np.eye(V)[4])
    near(logits["induction"], np.zeros(V))
    near(logits["previous"], np.eye(V)[1])  # the induction head finds nothing and attends to itself


@pytest.mark.slow
def test_the_circuit_can_be_completed_and_cut_by_hand():
    told = jnp.zeros(INDUCTION.config.d_model).at[PREVIOUS.start + 1].set(1.0)
    pattern = run(INDUCTION, CLEAN, "pattern").activations["pattern"]
    (layer, previous), (later, induction) = PREVIOUS_HEAD, INDUCTION_HEAD
    for tokens, edit, expected in (
        (
            CORRUPTED,
            steer(1, told, position=2),
            1,
        ),  # what the previous-token head would have written
        (CORRUPTED, freeze_pattern(pattern), 1),  # attending to that token is enough
        (CLEAN, knock_out(2, 1, layer=layer, head=previous), -1),
        (CLEAN, knock_out(LAST, 2, layer=later, head=induction), -1),
        (CLEAN, knock_out(LAST, 1), 1),
    ):
        near(right_rather_than_wrong(run(INDUCTION, tokens, edit=edit).logits), expected)


# --- patching --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "by", "shape", "places"),
    [
        # The token that was changed; then the next one, into which the previous-token head copied it.
        ("resid_pre", ("layer", "position"), (2, 7), [(0, 1), (1, 2)]),
        ("attn_out", ("layer", "position"), (2, 7), [(0, 2), (1, LAST)]),
        ("z", ("layer", "head"), (2, 2), [PREVIOUS_HEAD, INDUCTION_HEAD]),
        ("z", ("layer", "head", "position"), (2, 2, 7), [(*PREVIOUS_HEAD, 2), (*INDUCTION_HEAD, LAST)]),
        # One head attends elsewhere in the other text; the other attends to the same position, with another token.
        ("pattern", ("layer", "head"), (2, 2), [INDUCTION_HEAD]),
        ("v", ("layer", "head"), (2, 2), [PREVIOUS_HEAD]),
        ("k", ("layer", "head", "position"), (2, 2, 7), [(*INDUCTION_HEAD, 2)]),
        ("q", ("head", "layer"), (2, 2), []),
    ],
)  # fmt: skip
def test_the_sweep_finds_where_the_difference_is_carried(site: str, by: Any, shape, places: Any):
    found = patch_sweep(*MODEL, CLEAN, CORRUPTED, right_rather_than_wrong, site, by)
    near(found, only(shape, *places, low=-1.0))


def test_patching_one_column_of_a_pattern_has_half_the_effect():
    by = ("layer", "head", "source")
    found = patch_sweep(*MODEL, CLEAN, CORRUPTED, right_rather_than_wrong, "pattern", by)
    expected = np.full((2, 2, 7), -1.0)
    expected[*INDUCTION_HEAD, [2, LAST]] = 0.0  # attends to both; attends to neither
    near(found, expected)


@pytest.mark.slow(unless=("q", "v"))
@pytest.mark.parametrize("receiver", ["q", "k", "v"])
def test_the_path_goes_from_the_previous_token_head_into_the_induction_head_s_keys(receiver: Any):
    found = np.asarray(path_patch(*MODEL, CLEAN, CORRUPTED, right_rather_than_wrong, receiver))
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, :, 0]).all()
    places = [(*PREVIOUS_HEAD, *INDUCTION_HEAD)] if receiver == "k" else []
    near(found[0, :, 1], only((2, 2, 2, 2), *places, low=-1.0)[0, :, 1])


@pytest.mark.slow
def test_a_difference_in_the_query_has_no_path_through_the_keys():
    """Both texts have A B C D; the last token is B in one and C in the other."""
    clean, corrupted = jnp.array([3, 1, 4, 0, 1]), jnp.array([3, 1, 4, 0, 4])

    def metric(logits: jax.Array) -> jax.Array:
        return logits[-1, 4] - logits[-1, 0]

    found = patch_sweep(*MODEL, clean, corrupted, metric, "q", ("layer", "head"))
    near(found, only((2, 2), INDUCTION_HEAD, low=-1.0))
    through_keys = path_patch(*MODEL, clean, corrupted, metric, "k")
    near(through_keys[0, :, 1], np.full((2, 2), -1.0))


# --- weights ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_composition_names_the_pair_and_its_kind():
    pair = (*PREVIOUS_HEAD, *INDUCTION_HEAD)
    scores = np.asarray(composition_scores(*MODEL, "k"))
    chance = composition_baseline(INDUCTION.config, jax.random.key(0), samples=20)
    assert scores[pair] > chance.mean + 5 * chance.std
    near(scores / scores[pair], only(scores.shape, pair), 1e-6)
    for kind in ("q", "v"):
        near(composition_scores(*MODEL, kind), np.zeros(scores.shape), 1e-6)


def test_full_circuits_map_tokens_to_tokens():
    """The induction head copies every token; the duplicate-token head attends to the same token."""
    written = np.zeros((2, 2, V, V))
    written[INDUCTION_HEAD] = np.eye(V)
    near(full_ov_circuit(*MODEL).AB, written, 1e-6)
    looked_for = full_qk_circuit(*MODEL).AB
    near(looked_for[HEADS["duplicate"]], circuits.SHARP * np.eye(V), 1e-4)
    near(looked_for[PREVIOUS_HEAD], np.zeros((V, V)), 1e-4)


# --- logits ----------------------------------------------------------------------------------------------------


def test_only_the_induction_head_writes_the_logit():
    sites = ("embed", "pos_embed", "attn_out", "z", "resid_pre", "resid_post")
    out = run(INDUCTION, CLEAN, *sites)
    heads = head_results(*MODEL, out.activations)
    each = direct_logit_attribution(*MODEL, out.activations, heads, 4, 1).reshape(2, 2, -1)
    near(each[..., LAST], only((2, 2), INDUCTION_HEAD))
    layers = decompose_resid(*MODEL, out.activations)
    credit = direct_logit_attribution(*MODEL, out.activations, layers, 4, 1)[:, LAST]
    named = dict(zip(component_labels(INDUCTION.config), np.asarray(credit), strict=True))
    assert max(named, key=lambda name: named[name]) == "1_attn_out"
    near(sum(abs(value) for value in named.values()), 1)
    lens = logit_lens(*MODEL, accumulated_resid(*MODEL, out.activations))
    near(lens[:-1], np.zeros((2, LAST + 1, V)))  # no prediction before the last layer
    near(lens[-1], out.logits)


# --- neurons ---------------------------------------------------------------------------------------------------


def test_the_neuron_that_ands_is_found_by_what_it_writes():
    circuit = circuits.conjunction()
    model = circuit.params, circuit.config
    tokens = jnp.array([FIRST, SECOND, SECOND, FIRST, 1, SECOND])
    out = run(circuit, tokens, "post", "resid_post")
    wrote = np.asarray(neuron_results(*model, out.activations, 0))
    near(wrote[AND], only((6, circuit.config.d_model), (1, ANSWER.start + THEN)))
    near(wrote[[OR, ONE]][..., ANSWER], np.zeros((2, 6, V)))
    assert np.abs(wrote[[OR, ONE]][..., SPARE]).sum() > 0
    towards = logit_directions(*model, out.activations, THEN)
    near(neuron_results(*model, out.activations, 0, onto=towards), only((3, 6), (AND, 1)))


@pytest.mark.slow
def test_the_neuron_that_ands_is_found_by_patching():
    """A sweep gives the same as a vmap over edits of single neurons."""
    circuit = circuits.conjunction()
    clean, corrupted = jnp.array([4, FIRST, SECOND]), jnp.array([4, 1, SECOND])

    def metric(logits: jax.Array) -> jax.Array:
        return logits[-1, THEN]

    runs = circuit.params, circuit.config, clean, corrupted, metric
    near(patch_sweep(*runs, "post", ("neuron", "position")), only((3, 3), (AND, 2)))
    near(patch_sweep(*runs, "z", ("head",)), only((2,), (circuit.heads["previous"][1],)))
    post = run(circuit, clean, "post").activations["post"][0]

    def patched(neuron: jax.Array) -> jax.Array:
        edit = patch("post", 0, {"neuron": neuron}, post)
        return metric(run(circuit, corrupted, edit=edit).logits)

    near(jax.vmap(patched)(jnp.arange(3)), only((3,), (AND,)))


# --- attribution -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_gradient_finds_the_last_step_and_integrated_gradients_the_full_circuit():
    """At the corrupted run the softmax of the induction head is saturated, so its keys have no gradient."""
    shared = *MODEL, CLEAN, CORRUPTED, right_rather_than_wrong, ("z",)
    by = ("layer", "head")
    near(attribution_patch(*shared, by=by)["z"], 2 * only((2, 2), INDUCTION_HEAD))
    along = np.asarray(attribution_patch(*shared, by=by, steps=100)["z"])
    near(along[PREVIOUS_HEAD], 2, 0.05)
    near([along[HEADS["duplicate"]], along[HEADS["current"]]], [0, 0])
