"""The jitted, vmapped forward pass: ours and the peers', on the same weights and tokens."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case
from benchmarks.contest import Work, contest, enter, gather
from benchmarks.device import Device
from benchmarks.options import Options
from benchmarks.program import batched_logits, every_site, prepare, random_tokens
from benchmarks.roofline import Ceilings, forward_bytes, forward_flops
from jaxformer.config import Compute
from jaxformer.transformer import abstract, init

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest difference of logits, relative to the largest logit."""


def rows(
    case: Case,
    dtype: Any,
    options: Options,
    device: Device,
    ceilings: Ceilings,
    peers: list[str],
    say: Any,
) -> Iterator[dict[str, Any]]:
    """One row per implementation. `say` is told why a peer is left out."""
    name, config, batch, seq = case
    kernel = options.compute_kernel(device.platform)
    function = batched_logits(config, Compute(kernel=kernel), options.map)
    shapes = abstract(config, jnp.dtype(dtype)), jax.ShapeDtypeStruct((batch, seq), jnp.int32)
    what = f"forward {name} {batch} x {seq}"
    program = prepare(what, function, shapes, device=device, options=options)
    params = init(config, jax.random.key(0), jnp.dtype(dtype))
    tokens = random_tokens(config, batch, seq, seed=time.time_ns() % 2**31)
    notes = {"kernel": kernel, **program.notes()}
    ours = enter("jaxformer", lambda: lambda: program.run(params, tokens), **notes)
    ours = ours._replace(first_seconds=ours.first_seconds + program.seconds)
    others = gather(peers, "forward", (config, params, tokens, device), say)
    if options.capture:
        seeing = every_site(config, Compute(kernel=kernel))
        watched = prepare(f"{what}, every site", seeing, shapes, device=device, options=options)
        entered = enter(
            "jaxformer, every site", lambda: lambda: watched.run(params, tokens), **watched.notes()
        )
        others.insert(0, entered._replace(result=entered.result[0]))
    work = Work(
        tokens=batch * seq,
        flops=batch * forward_flops(config, seq),
        traffic=forward_bytes(config, batch, seq, jnp.dtype(dtype).itemsize),
    )
    yield from contest(
        ours, others, work=work, ceilings=ceilings, tolerance=TOLERANCES[dtype],
        repeats=options.repeats, seconds=options.seconds, device=device,
    )  # fmt: skip
