"""Greedy decoding with a cache: a prompt is read, then one token follows another."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, stretched
from benchmarks.contest import Setting, Work, contest, enter_ours, gather, in_float32_only
from benchmarks.program import fresh_seed, prepare, random_tokens
from benchmarks.roofline import forward_flops
from jaxformer.cache import empty_cache
from jaxformer.config import Compute, Config
from jaxformer.params import abstract, count, init
from jaxformer.transformer import forward


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """One row per implementation; every added token must be the same.

    In a narrow dtype two right implementations may choose different tokens, so peers run in float32 only.
    """
    name, _, batch, seq = case
    new, dtype = setting.options.new, jnp.dtype(setting.dtype)
    config = stretched(case.config, seq + new)
    program = prepare(
        f"decode {name} {batch} x {seq}",
        greedy(config, Compute(kernel=setting.kernel), new, dtype),
        (abstract(config, dtype), jax.ShapeDtypeStruct((batch, seq), jnp.int32)),
        device=setting.device,
        options=setting.options,
    )
    params = init(config, jax.random.key(0), dtype)
    seed = fresh_seed()
    prompts = random_tokens(config, batch, seq, seed=seed)
    build = lambda: partial(program.run, params, prompts)  # noqa: E731
    ours = enter_ours(program, build, kernel=setting.kernel, new=new, seed=seed)
    setting = in_float32_only(setting, "greedy choices are compared in float32 only")
    others = gather(setting, "decode", (config, params, prompts, setting.device), new=new)
    done = work(config, batch, seq, new, dtype.itemsize)
    yield from contest(ours, others, done, 0.0, setting)


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
