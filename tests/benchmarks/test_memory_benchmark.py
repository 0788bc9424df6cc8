"""The memory workload: its ways for a model, their rows, and refused options."""

from typing import Any

import jax
import pytest

from benchmarks import memory
from benchmarks.cases import SIZES, Case, change
from benchmarks.comparison import Setting
from benchmarks.memory import ways
from benchmarks.options import Options
from tests.helpers.benches import CEILINGS, TINY
from tests.helpers.errors import check_names, raises


def ways_of(size: str, *changes: str, **options: Any) -> tuple[list[str], list[str]]:
    """Return the ways for a size, and the messages about those that are skipped."""
    config, batch, seq = SIZES[size]
    given, messages = Options(workload="memory", **options), []
    setting = Setting(given, jax.devices()[0], "float32", CEILINGS, [], messages.append)
    return [*ways(Case(size, change(config, changes), batch, seq), setting)], messages


def test_only_a_large_vocabulary_is_chunked():
    small, (why,) = ways_of("baby")
    assert small == [
        "jaxformer", "remat dots", "remat sites resid_mid z pre", "remat sites resid_mid z",
        "remat sites resid_mid", "remat block", "accumulate 4",
    ]  # fmt: skip
    check_names(why, "vocab_chunk", "baby", 65, 4096)
    large, none = ways_of("gpt2-124m", saved=("z",), vocab_chunk=99)
    assert large == [
        "jaxformer", "remat dots", "remat sites z", "remat block",
        "vocab_chunk 99", "vocab_chunk 99, remat sites z", "vocab_chunk 99, remat block",
    ]  # fmt: skip
    assert not none


def test_only_sites_of_the_model_are_saved():
    found, _ = ways_of("baby", "parallel=true", "gated=true")
    sites = [way for way in found if "sites" in way]
    assert sites == ["remat sites z pre pre_linear", "remat sites z"]


def test_accumulation_that_does_not_divide_the_batch_is_skipped():
    assert "accumulate 6" in ways_of("baby", accumulate=6)[0]
    found, why = ways_of("baby", accumulate=5)
    assert "accumulate 5" not in found
    check_names(why[-1], "accumulate", "baby", 5, 12)


@pytest.mark.slow
def test_the_losses_of_all_ways_agree_and_their_memory_is_reported(bench, monkeypatch):
    some = "jaxformer", "remat sites z", "vocab_chunk 64, remat block"
    # Each takes seconds to compile.
    monkeypatch.setattr(memory, "ways", lambda *given: {way: ways(*given)[way] for way in some})
    rows, out = bench(
        "memory", *TINY, "--set", "n_layers=3", "d_model=8", "n_heads=2", "d_head=4", "d_mlp=64",
        "n_vocab=512", "--seq", "48", "--repeats", "3", "--vocab-chunk", "64", "--saved", "z",
    )  # fmt: skip
    assert [row["way"] for row in rows] == ["plain", *some[1:]]
    for row in rows:
        assert row["agrees"]
        assert row["difference"] < 1e-5
        assert row["median"] > 0
        assert row["held_over_plain"] == row["held_bytes"] / rows[0]["held_bytes"]
    logits, activations = 4 * 2 * 48 * 512, 3 * 4 * 2 * 48 * 64
    held = [row["held_bytes"] for row in rows]
    assert held[0] > held[1] + activations / 2
    assert held[0] > held[2] + logits + activations / 2
    assert rows[0]["peak_bytes"] > held[0]
    assert "time / plain" in out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"workload": "forward", "saved": ("z",)}, ("--saved", "memory", "forward")),
        ({"workload": "train-step", "vocab_chunk": 9}, ("--vocab-chunk", "memory", "train-step")),
        ({"workload": "memory", "vocab_chunk": 0}, ("vocab_chunk=0", 1)),
    ],
)
def test_options_of_another_workload_are_refused(options: dict[str, Any], named: tuple):
    with raises(ValueError, *named):
        Options(**options).check()


def test_a_site_that_the_kernel_never_computes_is_refused(bench):
    check_names(bench.refusal("memory", *TINY, "--saved", "pattern"), "kernel='blocked'", "pattern")
