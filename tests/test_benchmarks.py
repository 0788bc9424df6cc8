"""The benchmarks' arithmetic and their command line."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import forward as bench_forward
from benchmarks.__main__ import main
from benchmarks.forward import SIZES
from benchmarks.roofline import forward_flops, matmul_rate
from benchmarks.timing import interleave, summarize
from jaxformer import abstract, forward
from tests.models import NAMED, compiled_flops


@pytest.mark.parametrize("size", ["seed", "baby", "char"])
def test_counted_flops_are_those_of_the_compiled_program(size: str):
    """XLA counts a loop's body once, so one layer is compiled; what we leave out is below 8 %."""
    config, _, context = SIZES[size]
    one_layer = dataclasses.replace(config, n_layers=1)
    tokens = jax.ShapeDtypeStruct((context,), jnp.int32)
    counted = compiled_flops(
        lambda p, t: forward(p, one_layer, t).logits, abstract(one_layer), tokens
    )
    assert forward_flops(one_layer, context) == pytest.approx(counted, rel=0.08)
    per_layer = forward_flops(config, context) - forward_flops(one_layer, context)
    assert per_layer % (config.n_layers - 1) == 0


def test_gated_and_grouped_models_are_counted_by_their_parameters():
    """Without attention's mixing, each weight of a matrix does one multiply-add per token."""
    config = NAMED["modern"]
    weights = abstract(config)
    attn, mlp = weights.blocks.attn, weights.blocks.mlp
    assert mlp is not None
    matrices = [*attn[:4], mlp.W_in, mlp.W_gate, mlp.W_out, weights.W_U]
    mixing = 2 * 2 * 7 * 7 * config.n_layers * config.n_heads * config.d_head
    assert forward_flops(config, 7) - mixing == 2 * 7 * sum(
        m.size for m in matrices if m is not None
    )


def test_calls_take_turns():
    order = []
    interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, warmup=1, repeats=2
    )
    assert order == ["a", "b"] * 3


def test_quartiles():
    assert summarize([1.0, 2.0, 3.0, 4.0, 5.0])[:3] == (3.0, 2.0, 4.0)
    assert summarize([7.0])[:3] == (7.0, 7.0, 7.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forward_prints_a_table_and_writes_rows(tmp_path: Path, capsys, monkeypatch, dtype: str):
    monkeypatch.setattr(bench_forward, "matmul_rate", partial(matmul_rate, sizes=(128,), repeats=2))
    path = tmp_path / "rows.jsonl"
    arguments = [
        "forward",
        "--sizes",
        "seed",
        "baby",
        "--repeats",
        "2",
        "--dtype",
        dtype,
        "--json",
        str(path),
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "of matmul" in out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["size"] for row in rows] == ["seed", "baby"]
    for row in rows:
        assert row["dtype"] == dtype
        assert row["low"] <= row["median"] <= row["high"]
        assert (
            row["fraction_of_matmul"]
            == row["flops"] / row["median"] / row["matmul_flops_per_second"]
        )
        assert row["jax"] == jax.__version__


def test_an_unknown_size_is_a_sentence(capsys):
    assert main(["forward", "--sizes", "huge"]) == 1
    assert "no size 'huge'; choose from seed, baby" in capsys.readouterr().err
