"""The scaling workload: theory held to the compiled program, memory to what splitting promises, rows to one device."""

import dataclasses
import os
import subprocess
import sys
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import pytest

from benchmarks import scaling
from benchmarks.cases import Case
from benchmarks.contest import Setting
from benchmarks.options import Options
from benchmarks.program import peak_bytes
from benchmarks.theory import Split, Step, predicted
from jaxformer import Config
from tests.helpers.benches import CEILINGS
from tests.helpers.errors import check_names
from tests.helpers.meshes import CLASSIC_8, MODERN_8, layout_of, recipe_of
from train.optimizer import make_optimizer
from train.plan.collectives import Kind, collectives, totals, with_reduce_scatter
from train.plan.memory import own_bytes
from train.run import batch_shapes, how_of, state_shapes
from train.step import many_steps

pytestmark = pytest.mark.usefixtures("standard_promotion")

CLASSIC = dataclasses.replace(CLASSIC_8, n_layers=3, n_context=12)  # of whose rows 8 are looked up
MODERN = MODERN_8
SEED = dataclasses.replace(
    CLASSIC,
    n_layers=2,
    position="none",
    n_context=None,
    norm="none",
    activation="relu",
    bias="none",
    tied=False,
)
CONTEXT = 8


class Compiled(NamedTuple):
    """What one device has and sends."""

    sent: dict[Kind, int]  # payloads, with reduce-scatters
    peak: int
    step: Step


@lru_cache
def compiled(
    config: Any, split: Split, devices: int, batch: int = 8, accumulate: int = 1
) -> Compiled:
    layout = layout_of(f"{split}={devices}")
    recipe = dataclasses.replace(recipe_of(config), batch=batch, accumulate=accumulate)
    layout.check(recipe, config)
    optimizer = make_optimizer(config, recipe.optimizer, recipe.steps)
    steps: Any = many_steps(config, optimizer, how_of(recipe, layout))
    program = steps.lower(
        state_shapes(recipe, config, layout), batch_shapes(recipe, layout)
    ).compile()
    found = totals(with_reduce_scatter(collectives(program.as_text())))
    sent: Any = {kind: traffic.payload_bytes for kind, traffic in found.items()}
    return Compiled(sent, peak_bytes(program), Step(config, batch, CONTEXT))


def theory(split: Split, devices: int, step: Step) -> dict[Kind, int]:
    found = totals(predicted(split, devices, step))
    return {kind: traffic.payload_bytes for kind, traffic in found.items()}


# --- what is sent ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "split", "devices", "batch"),
    [
        (SEED, "data", 8, 16), (SEED, "fsdp", 8, 16),
        (CLASSIC, "tensor", 8, 8), (MODERN, "tensor", 4, 8),
    ],
)  # fmt: skip
def test_what_is_sent_is_what_theory_says_to_the_byte(
    config: Any, split: Split, devices: int, batch: int
):
    found = compiled(config, split, devices, batch)
    assert found.sent == theory(split, devices, found.step)


@pytest.mark.slow
def test_a_tied_table_s_two_sums_are_not_scattered_by_this_compiler():
    """It sums both everywhere, adds them, and then slices: all else is to the byte."""
    found = compiled(CLASSIC, "fsdp", 4)
    expected = theory("fsdp", 4, found.step)
    twice = 2 * 4 * CLASSIC.n_vocab * CLASSIC.d_model
    assert found.sent["all-reduce"] == expected["all-reduce"] + twice
    assert found.sent["reduce-scatter"] == expected["reduce-scatter"] - twice
    assert found.sent["all-gather"] == expected["all-gather"]


@pytest.mark.slow
def test_of_a_sequence_in_parts_only_a_few_integers_are_not_foreseen():
    """And of keys' and values' gradients, whether a bias's gradient needs the whole sum."""
    found = compiled(SEED, "sequence", 4)
    expected = theory("sequence", 4, found.step)
    summed = ("all-reduce", "reduce-scatter")
    assert sum(found.sent.get(k, 0) for k in summed) == sum(expected[k] for k in summed)
    integers = found.sent["all-gather"] - expected["all-gather"]
    assert 0 <= integers + found.sent["collective-permute"] <= 2 * found.step.tokens


@pytest.mark.slow
def test_what_is_sent_twice_is_seen():
    """As where a batch has two parts, one after the other: gradients are summed twice, arrays gathered four times."""
    once, twice = (compiled(SEED, "fsdp", 8, 16, parts) for parts in (1, 2))
    tables = 2 * 4 * SEED.n_vocab * SEED.d_model  # outside of the loop
    assert twice.sent == {
        "all-reduce": once.sent["all-reduce"] + 4,  # the loss
        "reduce-scatter": 2 * once.sent["reduce-scatter"],
        "all-gather": 2 * once.sent["all-gather"] - tables,
    }


def test_by_hand_of_megatron_and_zero():
    config = Config(n_layers=5, d_model=16, n_heads=8, d_head=2, d_mlp=32, n_vocab=24)
    step = Step(config, batch=3, context=7)
    stream = 4 * 3 * 7 * 16
    apart, joined = (
        theory("tensor", 8, step._replace(joined=way))["all-reduce"] for way in (False, True)
    )
    assert apart - joined == 5 * 2 * stream  # q, k and v in one
    norms = 2 * 4 * 8
    assert joined == (5 * 4 + 2) * stream + 3 * 4 * 3 * 7 + norms
    block = 4 * 5 * (4 * 16 * 16 + 2 * 16 * 32)
    tables = 2 * 4 * 16 * 24
    assert theory("data", 8, step) == {"all-reduce": block + tables + 8}
    assert theory("fsdp", 8, step) == {
        "all-reduce": 8 + norms,
        "reduce-scatter": block + tables,
        "all-gather": 2 * block + tables,
    }
    (ring,) = totals(predicted("data", 8, step)).values()
    assert ring.sent_bytes == pytest.approx(
        2 * 7 / 8 * ring.payload_bytes, abs=20
    )  # whole bytes of each array


# --- what is held ---


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("config", [CLASSIC, MODERN])
def test_fully_sharded_a_device_holds_its_part_of_all_that_has_d(config: Any, devices: int):
    config = dataclasses.replace(config, d_model=40)  # which nothing else is
    recipe = recipe_of(config)
    state = state_shapes(recipe, config, layout_of(f"fsdp={devices}"))
    for tree, copies in ((state.params, 1), (state.optimizer, 2)):
        leaves = jax.tree.leaves(tree)
        cut = [leaf for leaf in leaves if 40 in leaf.shape]
        assert len(cut) == copies * sum(
            "d" in spec.axes for _, spec, _ in Step(config, 1, 1).arrays()
        )
        assert own_bytes(cut) * devices == sum(leaf.size * 4 for leaf in cut)
        rest = [leaf for leaf in leaves if 40 not in leaf.shape]
        assert own_bytes(rest) == sum(leaf.size * 4 for leaf in rest)


@pytest.mark.slow
def test_of_more_devices_with_more_sequences_none_holds_more():
    """Fully sharded it holds less; with a copy of the model the same, and at most the sums of gradients beside."""
    one, copies = compiled(SEED, "data", 1, 2), compiled(SEED, "data", 8, 16)
    assert one.sent == theory("data", 1, one.step) == {}
    assert compiled(SEED, "fsdp", 8, 16).peak < one.peak
    assert abs(copies.peak - one.peak) <= sum(copies.sent.values())


# --- the command ---

TINY = ["--sizes", "seed", "--set", "n_layers=1", "d_model=8", "n_heads=1", "d_head=8", "d_mlp=8", "--batch", "2",
        "--seq", "4", "--repeats", "3", "--devices", "1", "2"]  # fmt: skip


@pytest.mark.slow
def test_rows_of_all_numbers_of_devices_agree_and_are_timed(bench):
    rows, out = bench("scaling", *TINY, "--split", "fsdp")
    assert [(row["mesh"], row["scaling"], row["batch"]) for row in rows] == [
        ("fsdp=1", "one", 2), ("fsdp=2", "weak", 4), ("fsdp=2", "strong", 2),
    ]  # fmt: skip
    for row in rows:
        assert row["agrees"]
        assert row["difference"] < 1e-5
        assert row["compiled_scattered"].keys() == row["theory"].keys()
        assert (
            row["compiled_payload_bytes"] == row["theory_payload_bytes"] > 0 or row["devices"] == 1
        )
        assert row["over_work"] == row["over_one_median"] / (row["batch"] / 2)
        assert row["config"]["n_heads"] == 2
        assert row["virtual"]
    one, weak, strong = rows[:3]
    assert one["loss"] == pytest.approx(strong["loss"], rel=1e-5) != weak["loss"]
    assert one["over_one_median"] == 1
    assert weak["parameter_bytes"] * 2 == strong["parameter_bytes"] * 2 == one["parameter_bytes"]
    check_names(out, "seed", "d_head=4", "n_heads=2", "n_vocab=66")
    check_names(out, "virtual")
    assert "theory" in out


CASE = Case("x", CLASSIC, 2, 4)


def setting_of(options: Options, heard: list[str]) -> Setting:
    return Setting(options, jax.devices()[0], "float32", CEILINGS, [], heard.append)


def test_a_step_of_another_loss_is_marked_and_not_timed():
    calls = []

    def entrant(scaling_: str, devices: int, loss: float) -> scaling.Entrant:
        point = scaling.Point("data", devices, 2, scaling_)
        return scaling.Entrant(point, lambda: calls.append(devices), loss, {})

    entrants = [entrant("one", 1, 3.0), entrant("strong", 2, 3.0001), entrant("strong", 4, 3.00001)]
    setting = setting_of(Options(repeats=3), [])
    rows = list(scaling.timed(entrants, CASE, setting, {2: 3.0}, 0))
    assert [row["agrees"] for row in rows] == [True, False, True]
    assert ["median" in row for row in rows] == [True, False, True]
    assert 2 not in calls


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--devices", "16"], ("--devices 16", "cpu", 8)),
        (["--devices", "1"], ("scaling", "--devices 1 2")),
        (["--devices", "0"], ("devices=0", 1)),
        (["--devices", "2", "2"], ("--devices 2 2",)),
        (["--split", "data", "data"], ("--split data data",)),
        (["--seq", "3", "--split", "sequence"], ("context=3", 2)),
    ],
)
def test_what_cannot_be_is_a_sentence(bench, extra: list[str], named: tuple):
    check_names(bench.refusal("scaling", *TINY, *extra), *named)


@pytest.mark.processes
def test_as_many_devices_are_pretended_as_are_asked_for_unless_jax_has_begun():
    scaling.have_devices(Options(devices=(3,)))
    assert jax.device_count() == 8
    code = (
        "import jax; from benchmarks import scaling; from benchmarks.options import Options\n"
        "scaling.have_devices(Options(devices=(1, 3))); print(jax.device_count('cpu'))"
    )
    plain = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3"]
