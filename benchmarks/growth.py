"""The compile workload: compile time and run time by number of layers and by sequence length."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, extended
from benchmarks.comparison import Setting
from benchmarks.program import Program, batched_logits, prepare, random_tokens
from benchmarks.timing import interleave, summarize
from jaxformer.config import Compute
from jaxformer.model.params import abstract, init
from train.plan.flops import forward_flops


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield a row per depth at this case's batch size, then a row per sequence length at batch size 1."""
    options = setting.options
    deeper = [
        case._replace(config=dataclasses.replace(case.config, n_layers=n)) for n in options.depths
    ]
    longer = [
        case._replace(config=extended(case.config, t), batch=1, seq=t) for t in options.lengths
    ]
    for sweep, points in (("depth", deeper), ("length", longer)):
        if points:
            yield from sweep_rows(sweep, points, setting)


def sweep_rows(sweep: str, points: list[Case], setting: Setting) -> Iterator[dict[str, Any]]:
    """Compile all points alternately, several times; then run them alternately."""
    options, dtype, kernel = setting.options, jnp.dtype(setting.dtype), setting.kernel

    def compiled(point: Case) -> Program:
        function = batched_logits(point.config, Compute(kernel=kernel))
        shapes = (
            abstract(point.config, dtype),
            jax.ShapeDtypeStruct((point.batch, point.seq), jnp.int32),
        )
        what = f"{sweep} {point.config.n_layers} layers, {point.batch} x {point.seq}"
        return prepare(what, function, shapes, device=setting.device, options=options)

    compiled(points[0])  # the first trace of a process also imports modules
    rounds = [[compiled(point) for point in points] for _ in range(min(options.repeats, 5))]
    programs = rounds[-1]
    runs = {str(i): timed_call(points[i], programs[i], dtype) for i in range(len(points))}
    times = interleave(runs, repeats=options.repeats, seconds=options.seconds)
    compiling = [
        summarize([one[i].compile_seconds for one in rounds]).median for i in range(len(points))
    ]
    for i, point in enumerate(points):
        run = summarize(times[str(i)])
        flops = point.batch * forward_flops(point.config, point.seq)
        yield {
            "implementation": "jaxformer",
            "sweep": sweep,
            "kernel": kernel,
            "n_layers": point.config.n_layers,
            "batch": point.batch,
            "seq": point.seq,
            **run._asdict(),
            **programs[i].notes(),
            "trace_seconds": summarize([one[i].trace_seconds for one in rounds]).median,
            "compile_seconds": compiling[i],
            "compile_over_first": compiling[i] / compiling[0],
            "flops": flops,
            "tokens_per_second": point.batch * point.seq / run.median,
            "flops_per_second": flops / run.median,
            "of_matmul": flops / run.median / setting.ceilings.matmul,
        }


def timed_call(point: Case, program: Program, dtype: Any) -> Callable[[], Any]:
    """Return a call that runs the program on new weights and tokens."""
    params = init(point.config, jax.random.key(0), dtype)
    tokens = random_tokens(point.config, point.batch, point.seq, seed=1)
    return lambda: program.run(params, tokens)
