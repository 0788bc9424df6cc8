"""The benchmarks: their arithmetic, their comparison with peers, their command line."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import benchmarks.__main__ as command
from benchmarks import device, peers
from benchmarks.cases import SIZES, cases, change
from benchmarks.comparison import Contender, Setting, Work, compare, difference
from benchmarks.options import Options
from benchmarks.program import every_site
from benchmarks.roofline import matmul_rate, peak
from benchmarks.timing import interleave, paired, summarize
from jaxformer import Compute, abstract, available_sites, forward
from tests.helpers.benches import CEILINGS, TINY
from tests.helpers.errors import check_names
from tests.helpers.models import CLASSIC, compiled_flops, random_params, random_tokens
from train.plan.flops import forward_flops


@pytest.mark.parametrize("size", ["seed", "baby", "char"])
def test_counted_flops_are_those_of_the_compiled_program(size: str):
    """XLA counts the body of a loop once, so one layer is compiled. Operations that we do not count are below 8 %."""
    config, _, context = SIZES[size]
    one_layer = dataclasses.replace(config, n_layers=1)
    tokens = jax.ShapeDtypeStruct((context,), jnp.int32)
    run = lambda params, tokens: forward(params, one_layer, tokens).logits  # noqa: E731
    counted = compiled_flops(run, abstract(one_layer), tokens)
    assert forward_flops(one_layer, context) == pytest.approx(counted, rel=0.08)
    per_layer = forward_flops(config, context) - forward_flops(one_layer, context)
    assert per_layer % (config.n_layers - 1) == 0


def test_calls_alternate_and_warm_up_uncounted():
    order: list[str] = []
    functions = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = interleave(functions, warmup=1, repeats=2, warm_up=0.0)
    assert order == ["a", "b", "a", "b", "b", "a"]  # warm-up, then rounds that begin with the next
    assert [len(taken) for taken in times.values()] == [2, 2]
    order.clear()
    assert len(interleave(functions, warmup=1, repeats=2, warm_up=0.01)["a"]) == 2
    turns = [name for name, _ in itertools.groupby(order)]
    assert turns == ["a", "b", "a", "b", "a"]
    assert min(order.count("a"), order.count("b")) > 10  # as many calls as fit into warm_up
    assert len(interleave(functions, repeats=9, seconds=0.0)["a"]) == 3


def test_medians_quartiles_and_ratios_round_by_round():
    assert summarize([1.0, 2.0, 3.0, 4.0, 5.0])[:3] == (3.0, 2.0, 4.0)
    assert summarize([7.0])[:3] == (7.0, 7.0, 7.0)
    # The machine slows down by 10 x; each ratio is still 2.
    assert paired([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])[:3] == (2.0, 2.0, 2.0)


def test_a_peer_that_computes_something_else_is_marked_and_not_timed():
    called: set[str] = set()

    def contender(name: str, result: float) -> Contender:
        def call():
            called.add(name)
            return jnp.float32(result)

        return Contender(name, call, jnp.float32(result), 0.0, {})

    setting = Setting(Options(repeats=3), jax.devices()[0], "float32", CEILINGS, [], print)
    others = [contender("right", 1.0 + 1e-6), contender("wrong", 1.1)]
    rows = compare(contender("ours", 1.0), others, Work(1, 10, 1), 1e-4, setting)
    assert [row["agrees"] for row in rows] == [True, True, False]
    assert called == {"ours", "right"}
    assert "median" not in rows[2]
    assert rows[2]["difference"] == pytest.approx(0.1)
    assert rows[0]["time_over_ours"] == 1.0
    assert rows[0]["of_matmul"] == rows[0]["flops"] / rows[0]["median"] / CEILINGS.matmul
    assert command.table("forward", [row | {"size": "x", "batch": 1, "seq": 1} for row in rows], "")


def test_shapes_that_differ_are_infinitely_different():
    assert difference(jnp.ones(2), jnp.ones(3)) == float("inf")
    assert difference(jnp.zeros(2), jnp.zeros(2)) == 0.0


def test_every_site_comes_out_with_layers_in_front():
    params = random_params(CLASSIC)
    tokens = jnp.stack([random_tokens(CLASSIC, 5, seed) for seed in range(3)])
    logits, captured = every_site(CLASSIC, Compute())(params, tokens)
    assert set(captured) == set(available_sites(CLASSIC))
    assert captured["head_out"].shape == (2, 3, 5, 4, 8)  # l b t n d
    np.testing.assert_allclose(captured["logits"], logits)
    b_O: Any = params.blocks.attn.b_O
    total = captured["head_out"].sum(3) + b_O[:, None, None]
    np.testing.assert_allclose(total, captured["attn_out"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["forward", "train-step"])
def test_a_comparison_with_flax_is_printed_written_and_plotted(
    bench, tmp_path: Path, workload: str
):
    picture = tmp_path / "plot.png"
    rows, out = bench(workload, *TINY, "--peers", "flax-nnx", "--plot", str(picture))
    assert [row["implementation"] for row in rows] == ["jaxformer", "flax-nnx"]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "time / ours" in out
    for row in rows:
        assert row["agrees"]
        assert row["difference"] < 1e-5
        assert row["low"] <= row["median"] <= row["high"]
        assert row["versions"]["jax"] == jax.__version__
        assert {"device", "cores", "dtype", "flags", "revision", "command", "python"} <= row.keys()
    ours = rows[0]
    assert ours["compile_seconds"] > 0
    assert ours["first_seconds"] > ours["compile_seconds"]
    assert ours["peak_bytes"] > 0


@pytest.mark.slow
def test_forward_runs_every_dtype_batch_and_length_and_captures(bench):
    rows, _ = bench(
        "forward", "--sizes", "seed", "--set", "n_layers=1", "d_model=8", "d_mlp=8", "n_heads=1",
        "d_head=8", "--dtype", "float32", "bfloat16", "--batch", "1", "2", "--seq", "4", "8",
        "--peers", "none", "--repeats", "3", "--capture",
    )  # fmt: skip
    assert len(rows) == 2 * 2 * 2 * 2
    expected = itertools.product(("float32", "bfloat16"), (1, 2), (4, 8))
    assert {(row["dtype"], row["batch"], row["seq"]) for row in rows} == {*expected}
    assert {row["implementation"] for row in rows} == {"jaxformer", "jaxformer, every site"}
    assert {row["kernel"] for row in rows if "kernel" in row} == {"einsum"}


@pytest.mark.slow
def test_compile_sweeps_depth_and_length(bench):
    rows, out = bench("compile", *TINY, "--depths", "1", "3", "--lengths", "4", "16")
    shapes = [(row["n_layers"], row["batch"], row["seq"]) for row in rows]
    assert shapes == [(1, 2, 6), (3, 2, 6), (1, 1, 4), (1, 1, 16)]
    assert all(row["compile_seconds"] > 0 for row in rows)
    assert [rows[i]["compile_over_first"] for i in (0, 2)] == [1.0, 1.0]
    assert "/ first row" in out


@pytest.mark.slow
def test_parity_covers_every_dtype_kernel_and_precision(bench):
    rows, _ = bench("parity", *TINY)
    ways = [row for row in rows if "cache" not in row]
    assert len({(r["compute_dtype"], r["kernel"], r["precision"]) for r in ways}) == len(ways) == 27
    error = {row["compute_dtype"]: row["error"] for row in ways if "error" in row}
    assert error["float32"] < 1e-5 < error["float16"] < error["bfloat16"] < 0.1
    narrow = {row["cache"]: row["error"] for row in rows if "cache" in row}
    assert 0 < narrow["float16"] < narrow["bfloat16"] < 0.02
    assert 0 < narrow["int8"] < 0.02


def test_a_peer_that_is_not_installed_is_skipped_with_what_to_install(bench, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    rows, out = bench("forward", *TINY, "--peers", "torch")
    assert [row["implementation"] for row in rows] == ["jaxformer"]
    check_names(out, "torch", "pip install torch")


def test_a_peer_that_fails_does_not_take_the_others_with_it(bench, monkeypatch):
    def broken(*_: Any, **__: Any):
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr("benchmarks.peers.flax_nnx.forward", broken)
    rows, out = bench("forward", *TINY, "--peers", "flax-nnx")
    assert [row["implementation"] for row in rows] == ["jaxformer"]
    assert rows[0]["config"]["d_model"] == 8
    assert rows[0]["seed"] >= 0
    check_names(out, "flax-nnx", "RuntimeError", "no compiler")


def test_a_config_from_a_file_and_a_longer_position_table(tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text(CLASSIC.to_json(), encoding="utf-8")
    (case,) = cases((), config=str(path), changes=["norm=rms"], seq=(20,))
    assert (case.name, case.config.norm, case.config.n_context) == ("mine", "rms", 20)
    assert change(CLASSIC, ["tied=false", "n_kv_heads=2"]).n_kv_heads == 2


def test_only_known_devices_have_a_datasheet_peak():
    assert peak("NVIDIA H200", "bfloat16") == 989e12
    assert peak("NVIDIA H200", "float32") is None
    assert peak("cpu", "bfloat16") is None


def test_ceilings_are_measured():
    assert matmul_rate("float32", sizes=(64,), repeats=3) > 1e6


def test_a_row_holds_what_is_needed_to_repeat_it(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_xnnpack=false")
    facts = device.about(jax.devices()[0])
    assert facts["flags"]["XLA_FLAGS"] == "--xla_cpu_use_xnnpack=false"
    assert facts["platform"] == "cpu"
    assert json.dumps(facts)
