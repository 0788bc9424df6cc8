"""The patching workload: what it compares, what it counts, which peers it skips."""

import importlib.util

import pytest

from benchmarks.cases import SIZES, Case
from benchmarks.options import Options
from benchmarks.patching import most_patches, pairs_of_heads, patching_cases, per_patch
from tests.helpers.benches import TINY
from tests.helpers.errors import check_names

SMALL = [*TINY, "--batch", "1", "--seq", "5", "--set", "n_layers=2", "d_model=8", "n_heads=2", "d_head=4",
         "d_mlp=8", "n_vocab=11"]  # fmt: skip
TASKS = {"stream: l t": 10, "heads: l n": 4, "heads: l n t": 20, "paths: l n l n": 4}
"""Patches of each, for 2 layers of 2 heads and 5 tokens."""


def test_the_default_is_one_pair_of_short_prompts():
    def shapes(name: str, **given):
        config, batch, seq = SIZES[name]
        return [c[2:] for c in patching_cases(Case(name, config, batch, seq), Options(**given))]

    assert shapes("baby") == shapes("gpt2-124m") == [(1, 16)]
    assert shapes("baby", batch=(4,)) == [
        (12, 16)
    ]  # the case already has the batch size of the option
    assert shapes("baby", seq=(9,)) == [(1, 64)]


def test_a_peer_runs_all_patches_of_a_small_model_and_a_sample_of_a_large_one():
    baby, large = SIZES["baby"][0], SIZES["gpt2-124m"][0]
    assert pairs_of_heads(baby) == 96 <= most_patches(baby)
    assert pairs_of_heads(large) == 9504 > most_patches(large)


def test_times_are_compared_patch_by_patch():
    row = {"median": 6.0, "low": 4.0, "high": 8.0, "time_over_ours": 3.0}
    row |= {"time_over_ours_low": 2.0, "time_over_ours_high": 4.0}
    # Jaxformer ran five times as many patches in a third of the time.
    figures = per_patch(row, patches=2, ours=10)
    assert figures["patch_median"] == 3.0
    assert figures["time_over_ours"] == 15.0
    assert per_patch({}, 2, 10) == {}


@pytest.mark.slow
def test_each_task_is_timed_within_its_budget(bench):
    rows, out = bench("patching", *SMALL, "--peers", "none", "--budget", "3")
    assert {row["task"]: row["patches"] for row in rows if "patches" in row} == TASKS
    for row in rows[:4]:
        assert row["patch_median"] == row["median"] / row["patches"]
        assert row["compile_seconds"] > 0
        assert row["held_bytes"] <= row["budget_bytes"] == 3 * 2**20
    nodes, single = rows[4:]
    assert (nodes["task"], single["implementation"]) == ("all nodes", "one forward pass")
    assert nodes["over_forward"] == 1 / single["time_over_ours"]
    assert "ms / patch" in out
    assert all(task in out for task in TASKS)


@pytest.mark.slow
def test_too_small_a_budget_is_refused(bench):
    refusal = bench.refusal("patching", *SMALL, "--seq", "900", "--peers", "none", "--budget", "1")
    check_names(refusal, f"memory={2**20}")


@pytest.mark.peers
@pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens") is None,
    reason="TransformerLens is not installed: pip install -e '.[lens]'",
)
def test_transformer_lens_has_the_same_patching_effects(bench):
    rows, _ = bench("patching", *SMALL)
    peers = [row for row in rows if row["implementation"] == "lens"]
    assert len(peers) == 5
    assert all(row["agrees"] for row in peers)
    assert all(row["time_over_ours"] > 0 for row in peers)
