"""Greedy decoding with a cache: a prompt is read, then one token follows another."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, stretched
from benchmarks.contest import Work, contest, enter, gather
from benchmarks.device import Device
from benchmarks.options import Options
from benchmarks.program import prepare, random_tokens
from benchmarks.roofline import Ceilings, forward_flops
from jaxformer.config import Compute, Config
from jaxformer.transformer import abstract, count, empty_cache, forward, init


def rows(
    case: Case,
    dtype: Any,
    options: Options,
    device: Device,
    ceilings: Ceilings,
    peers: list[str],
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """One row per implementation; every added token must be the same.

    In a narrow dtype two right implementations may choose different tokens, so peers run in float32 only.
    """
    name, _, batch, seq = case
    new = options.new
    config = stretched(case.config, seq + new)
    kernel = options.compute_kernel(device.platform)
    shapes = abstract(config, jnp.dtype(dtype)), jax.ShapeDtypeStruct((batch, seq), jnp.int32)
    function = greedy(config, Compute(kernel=kernel), new, jnp.dtype(dtype))
    what = f"decode {name} {batch} x {seq}"
    program = prepare(what, function, shapes, device=device, options=options)
    params = init(config, jax.random.key(0), jnp.dtype(dtype))
    prompts = random_tokens(config, batch, seq, seed=time.time_ns() % 2**31)
    notes = {"kernel": kernel, "new": new, **program.notes()}
    ours = enter("jaxformer", lambda: lambda: program.run(params, prompts), **notes)
    ours = ours._replace(first_seconds=ours.first_seconds + program.seconds)
    if dtype != "float32" and peers:
        say("peers skipped: greedy choices are compared in float32 only")
    arguments = config, params, prompts, device
    others = gather(peers if dtype == "float32" else [], "decode", arguments, say, new=new)
    yield from contest(
        ours, others, work=work(config, batch, seq, new, jnp.dtype(dtype).itemsize),
        ceilings=ceilings, tolerance=0.0, repeats=options.repeats, seconds=options.seconds, device=device,
    )  # fmt: skip


def greedy(config: Config, compute: Compute, new: int, dtype: Any) -> Callable[..., Any]:
    """(params, prompts [b t]) -> the likeliest tokens that follow, [b new]."""

    def one(params: Any, prompt: Any) -> Any:
        cache = empty_cache(config, len(prompt) + new, dtype)

        def choose(tokens: Any, cache: Any) -> Any:
            out = forward(params, config, tokens, cache, compute=compute)
            return jnp.argmax(out.logits[-1]).astype(jnp.int32), out.cache

        def step(carry: Any, _: None) -> Any:
            token, cache = carry
            return choose(token[None], cache), token

        (last, _), tokens = jax.lax.scan(step, choose(prompt, cache), length=new - 1)
        return jnp.append(tokens, last)

    return jax.vmap(one, in_axes=(None, 0))


def work(config: Config, batch: int, seq: int, new: int, itemsize: int) -> Work:
    """Reading the prompt, then new - 1 steps that each read every parameter and the cache so far."""
    steps = new - 1
    kv = 2 * config.sizes["l"] * config.sizes["k"] * config.sizes["h"] * itemsize
    flops = forward_flops(config, seq) + sum(
        forward_flops(config, 1, seq + i) for i in range(steps)
    )
    cached = sum(seq + i for i in range(steps)) * kv
    return Work(
        tokens=batch * new,
        flops=batch * flops,
        traffic=new * count(config) * itemsize + batch * cached,
    )
