"""The decode workload: what it counts, what it times, and what it compares."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.cases import SIZES, Case
from benchmarks.comparison import split
from benchmarks.decode import (
    cache_bytes,
    decode_cases,
    first_work,
    further_work,
    greedy_tokens,
    parameters_read,
    work,
)
from benchmarks.options import Options
from benchmarks.timing import interleave
from jaxformer import Compute, Config, count, forward
from jaxformer.decoding.generation import generate, lower
from tests.helpers.benches import CEILINGS, TINY
from tests.helpers.compilations import compilations
from tests.helpers.errors import check_names
from tests.helpers.models import CLASSIC, MODERN, WINDOWED, random_params, random_tokens

SMALL = Config(n_layers=1, d_model=2, n_heads=2, d_head=3, d_mlp=5, n_vocab=7)
ATTENTION, NEURONS, TABLE = 4 * 2 * 6, 2 * 2 * 5, 7 * 2
ALL = ATTENTION + NEURONS + TABLE
"""SMALL's parameters: W_Q, W_K, W_V, W_O; W_in, W_out; W_E, or W_U."""


@pytest.mark.parametrize(
    ("changes", "step", "prompt"),
    [
        # One sequence of 4 tokens; a step looks up one token.
        ({}, ALL + 2, ALL + 4 * 2), ({"tied": True}, ALL, ALL),
        ({"tied": True, "position": "learned", "n_context": 50}, ALL + 2, ALL + 4 * 2),
        ({"n_kv_heads": 1}, ALL - 12 + 2, ALL - 12 + 4 * 2),
    ],
)  # fmt: skip
def test_only_the_rows_of_a_table_that_are_looked_up_count(changes: dict, step: int, prompt: int):
    config = dataclasses.replace(SMALL, **changes)
    assert parameters_read(config, 1, 1) == step
    assert parameters_read(config, 4, 4) == prompt
    assert parameters_read(config, 10**6, 1) <= count(config)


def test_a_position_of_the_cache_is_a_key_and_a_value_of_each_layer_and_head():
    config = dataclasses.replace(SMALL, n_layers=5, n_kv_heads=1)
    assert cache_bytes(config, "float32") == 2 * 5 * 1 * 3 * 4
    assert cache_bytes(config, "bfloat16") == 2 * 5 * 1 * 3 * 2
    assert cache_bytes(config, "int8") == 2 * 5 * 1 * (3 + 4)
    assert cache_bytes(SMALL, "float32") == 2 * 1 * 2 * 3 * 4


def test_each_further_token_reads_the_parameters_and_the_cache_so_far():
    case = Case("small", SMALL, 2, 4)
    read = 4 * (ALL + 2 * 2)  # a row of W_E for each of two sequences
    further = further_work(case, 4, "float32", "int8")
    assert further.traffic == 3 * read + 2 * (4 + 5 + 6) * 2 * 2 * (3 + 4)
    assert further.tokens == 2 * 3
    assert further.flops == 2 * (3 * 2 * ALL + 2 * (5 + 6 + 7) * 2 * 6)
    assert further_work(case, 1, "float32", "float32") == (0, 0, 0)
    assert further_work(case, 4, "bfloat16", "int8").traffic < further.traffic


def test_a_prompt_is_unembedded_at_its_last_position():
    case = Case("small", SMALL, 2, 4)
    first = first_work(case, "float32")
    mixing = 2 * 4 * 4 * 6
    assert first.flops == 2 * 2 * (4 * (ATTENTION + NEURONS) + mixing + TABLE)
    assert first.traffic == 4 * (ALL + 7 * 2)  # 8 tokens of 7 entries
    call = work(case, 3, "float32", "float32")
    assert call.tokens == 2 * 3
    assert call.traffic == first.traffic + further_work(case, 3, "float32", "float32").traffic


def test_only_the_window_of_the_cache_is_read():
    case = Case("windowed", WINDOWED, 1, 20)
    one, two = (further_work(case, new, "float32", "float32").traffic for new in (2, 3))
    step = 4 * parameters_read(WINDOWED, 1, 1) + 2 * cache_bytes(WINDOWED, "float32")
    assert (one, two) == (step, 2 * step)
    assert sum(WINDOWED.local_layers) == 2
    mixed = dataclasses.replace(WINDOWED, window_pattern="LG")
    one = further_work(Case("mixed", mixed, 1, 20), 2, "float32", "float32").traffic
    layer = cache_bytes(mixed, "float32") // 2
    assert one == 4 * parameters_read(mixed, 1, 1) + (2 + 20) * layer


@pytest.mark.slow
def test_greedy_decoding_is_the_uncached_argmax(x64):
    params, prompt = random_params(MODERN, dtype=jnp.float64), random_tokens(MODERN, 5)
    tokens = prompt
    for _ in range(4):
        best = jnp.argmax(forward(params, MODERN, tokens).logits[-1])
        tokens = jnp.append(tokens, best.astype(jnp.int32))
    np.testing.assert_array_equal(
        greedy_tokens(params, MODERN, prompt[None], 4, Compute())[0], tokens[5:]
    )


@pytest.mark.slow
def test_generate_runs_the_program_that_was_compiled_ahead():
    """The call then compiles nothing, so its time does not include compile time."""
    params, prompts = random_params(CLASSIC), random_tokens(CLASSIC, 5)[None]
    given: Any = params, CLASSIC, prompts, 2, jax.random.key(0)
    generate(*given)  # compiles everything outside the program
    jax.clear_caches()
    generate(*given, compute=Compute(unroll=2))
    lower(*given).compile()
    with compilations() as compiled:
        generate(*given)
        assert not compiled
        generate(*given, compute=Compute(unroll=3))
        assert compiled


def test_neighbours_stay_together():
    order: list[str] = []
    functions = {name: lambda name=name: order.append(name) for name in "aAbB"}
    interleave(functions, repeats=3, warm_up=0.0, together=2)
    assert "".join(order[4:]) == "aAbBbBaAaAbB"


def test_the_rest_of_a_call_is_subtracted_round_by_round():
    times = {"ours": [3.0, 30.0], "ours, opening": [1.0, 10.0]}
    times |= {"peer": [7.0, 70.0], "peer, opening": [1.0, 10.0]}
    figures = split(times, "peer", "ours")
    assert figures["rest_over_ours_median"] == figures["rest_over_ours_high"] == 3.0
    assert figures["opening_over_ours_median"] == 1.0
    lost = split(times | {"ours": [0.5, 30.0]}, "peer", "ours")
    assert "rest_median" not in lost
    assert "opening_median" in lost


def test_sizes_have_their_own_batch_sizes_and_prompt_lengths():
    def shapes(name: str, **given):
        config, batch, seq = SIZES[name]
        return [c[2:] for c in decode_cases(Case(name, config, batch, seq), Options(**given))]

    assert shapes("baby") == [(1, 32), (8, 32), (64, 32)]
    assert shapes("gpt2-124m") == [(1, 128), (8, 128)]
    assert shapes("seed") == [(1, 32), (8, 32)]
    assert shapes("char", batch=(16,)) == [(16, 128)]
    assert shapes("char", seq=(256,)) == [(1, 256), (8, 256)]


@pytest.mark.slow
def test_decoding_times_the_first_token_separately(bench):
    arguments = "--new", "24", "--cache", "float32", "int8", "bfloat16", "--peers", "flax-nnx"
    rows, out = bench("decode", *TINY, *arguments)
    names = ["jaxformer", "jaxformer, int8", "jaxformer, bfloat16"]
    assert [row["implementation"] for row in rows] == names
    assert [row["cache"] for row in rows] == ["float32", "int8", "bfloat16"]
    check_names(out, "flax-nnx", "decode")
    for row in rows:
        assert (row["tokens"], row["new"]) == (48, 24)
        assert row["compile_seconds"] > 0
        assert row["peak_bytes"] > 0
        assert row["agrees"]
        if "rest_median" in row:  # absent if noise made a difference of times negative
            assert row["opening_median"] < row["median"]
            assert row["token_median"] == row["rest_median"] / 23
            assert row["of_copy"] == row["rest_traffic"] / row["rest_median"] / CEILINGS.copy
    # With d_head=4, the scale takes as much as int8 saves over bfloat16.
    assert rows[1]["rest_traffic"] == rows[2]["rest_traffic"] < rows[0]["rest_traffic"]
    assert 0 <= rows[1]["same_tokens"] <= 1
    assert rows[1]["difference"] is None


@pytest.mark.slow
def test_with_one_new_token_there_are_no_figures_of_further_tokens(bench):
    rows, _ = bench("decode", *TINY, "--new", "1", "--peers", "none")
    assert rows[0]["of_copy"] is None
    assert "token_median" not in rows[0]


@pytest.mark.slow
def test_decoding_takes_xla_options(bench):
    options = "--xla", "xla_cpu_prefer_vector_width=128"
    rows, _ = bench("decode", *TINY, "--new", "3", "--peers", "none", *options)
    assert rows[0]["median"] > 0
    refusal = bench.refusal("decode", *TINY, "--peers", "none", "--xla", "no_such_option=1")
    check_names(refusal, "--xla")
