"""The options of the benchmarks: defaults of the suite, and what is refused."""

from pathlib import Path

import pytest
import tyro

import benchmarks.__main__ as command
from benchmarks.options import Options
from tests.helpers.benches import TINY
from tests.helpers.errors import check_names

BAD = {
    "seconds": (["--seconds", "nan"], ("seconds=nan", 0)),
    "a peer twice": (["--peers", "torch", "torch"], ("--peers torch torch",)),
    "no folder": (["--plot", "/nowhere/x.png"], ("/nowhere/x.png", "/nowhere")),
    "capture with map": (["--capture", "--map", "1"], ("--capture", "--map", "forward")),
    "a size": (["--sizes", "huge"], ("huge", "seed", "baby")),
    "a peer": (["--peers", "tf"], ("tf", "flax-nnx", "torch")),
    "a device": (["--device", "tpu"], ("tpu", "cpu")),
    "a field": (["--set", "layers=3"], ("layers=3", "n_layers")),
    "a value": (["--set", "n_heads=0"], ("n_heads=0", 1)),
    "no rounds": (["--repeats", "0"], ("repeats=0", 1)),
    "an empty batch": (["--batch", "0"], (0, 1)),
    "no such file": (["--config", "/nowhere.json"], ("/nowhere.json",)),
    "an XLA option": (["--xla", "no_such_option=1"], ("--xla",)),
    "a cache without decode": (["--cache", "int8"], ("--cache int8", "decode", "forward")),
    "a cache twice": (["--cache", "int8", "int8"], ("--cache int8 int8",)),
    "half an XLA option": (["--xla", "fast"], ("fast", "OPTION=VALUE")),
    "a kernel without all sites": (["--capture", "--kernel", "fused"], ("--capture", "kernel=fused", "einsum")),
    "too much memory": (["--batch", "1000000000"], ("forward", 1000000000, "--batch", "--seq")),
    "too much to hold": (["--set", "d_mlp=100000000000"], ("forward", "--batch", "--seq")),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_invalid_options_are_refused_with_a_sentence(bench, what: str):
    arguments, named = BAD[what]
    check_names(bench.refusal("forward", "--sizes", "seed", "--peers", "none", *arguments), *named)


def test_a_parity_that_does_not_fit_is_refused(bench):
    refusal = bench.refusal("parity", "--sizes", "seed", "--seq", "2000000")
    check_names(refusal, "parity", 2000000, "--batch", "--seq")


@pytest.mark.slow
def test_a_plot_of_rows_without_a_roofline_is_refused(bench, tmp_path: Path):
    refusal = bench.refusal("parity", *TINY, "--plot", str(tmp_path / "x.png"))
    check_names(refusal, "--plot", "forward", "train-step", "decode")


def test_options_of_the_user_override_those_of_the_suite():
    assert command.with_defaults(Options(), {"seconds": 4.0}).seconds == 4.0
    assert command.with_defaults(Options(seconds=1.0), {"seconds": 4.0}).seconds == 1.0


def test_the_suite_runs_every_workload_but_memory():
    assert {*command.SUITE, "memory"} == set(command.WORKLOADS)
    assert set(command.WORKLOADS) == set(command.DEFAULT_SIZES)
    assert tyro.cli(Options, args=[]).workload == "suite"
