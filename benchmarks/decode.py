"""The decode workload: greedy generation, with the first token (the prefill) timed separately."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, extended
from benchmarks.comparison import (
    Contender,
    Setting,
    Work,
    compare,
    enter_jaxformer,
    enter_peers,
    in_float32_only,
)
from benchmarks.options import Options
from benchmarks.program import Program, compile_ahead, new_seed, prepare, random_tokens
from benchmarks.roofline import Ceilings
from jaxformer.config import Compute, Config
from jaxformer.decoding.generation import generate, lower
from jaxformer.decoding.sampling import Sampling
from jaxformer.decoding.stacking import unstack
from jaxformer.model.params import abstract, count, init
from train.plan.flops import forward_flops

GREEDY = Sampling(temperature=0)
BATCHES = {"baby": (1, 8, 64)}
"""Default batch sizes, by size; 1 and 8 elsewhere."""
PROMPTS = {"gpt2-124m": 128}
"""Default prompt lengths, by size; elsewhere half the sequence length."""


def decode_cases(case: Case, options: Options) -> Iterator[Case]:
    """Yield the case with the batch sizes and prompt length of this workload, where the options give none."""
    seq = case.seq if options.seq else PROMPTS.get(case.name, max(case.seq // 2, 1))
    for batch in (case.batch,) if options.batch else BATCHES.get(case.name, (1, 8)):
        yield case._replace(batch=batch, seq=seq)


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield one row per implementation and per --cache. Each is timed with all new tokens, and with one.

    Every peer must generate the same tokens as jaxformer. In a narrow dtype, two correct implementations may choose
    different tokens, so peers run in float32 only. A narrow cache may also change tokens: its row says how many agree.
    """
    name, _, batch, seq = case
    jax.clear_caches()  # so that compilation is timed
    new, dtype = setting.options.new, jnp.dtype(setting.dtype)
    case = case._replace(config=extended(case.config, seq + new))
    computes = computes_by_cache(setting)
    programs = {
        kept: compiled(f"decode {name} {batch} x {seq}, {kept} cache", case, compute, new, setting)
        for kept, compute in computes.items()
    }
    params = init(case.config, jax.random.key(0), dtype)
    unstacked = unstack(params)  # once, not in every call
    seed = new_seed()
    prompts = random_tokens(case.config, batch, seq, seed=seed)

    def enter_one(kept: str) -> Contender:
        build = partial(
            timed_call, programs[kept], case, computes[kept], unstacked, prompts, setting
        )
        notes = {"kernel": setting.kernel, "cache": kept, "seed": seed}
        return enter_jaxformer(programs[kept], build, new=new, **notes)

    ours, *narrow = [enter_one(kept) for kept in computes]
    narrow = [
        one._replace(
            name=f"jaxformer, {one.notes['cache']}",  # the dtype of the cache
            work=work(case, new, dtype, one.notes["cache"]),
            notes=one.notes | {"same_tokens": float((one.result == ours.result).mean())},
            exact=False,
        )
        for one in narrow
    ]
    others = in_float32_only(setting, "greedy choices are compared in float32 only")
    peers = enter_peers(others, "decode", (params, case.config, prompts, setting.device), new=new)
    done = work(case, new, dtype, setting.dtype)
    for row in compare(ours, [*narrow, *peers], done, 0.0, setting):
        rest = further_work(case, new, dtype, row.get("cache", setting.dtype))
        yield row | per_token(row, rest, new, setting.ceilings)


def computes_by_cache(setting: Setting) -> dict[str, Compute]:
    """Return how to run jaxformer, by the dtype of the cache; the first is the one that peers are compared with."""
    kept: list[Any] = [cache for cache in setting.options.cache if cache != setting.dtype]
    narrow = {cache: Compute(kernel=setting.kernel, cache=cache) for cache in kept}
    return {setting.dtype: Compute(kernel=setting.kernel), **narrow}


def greedy_tokens(params: Any, config: Config, prompts: Any, new: int, compute: Compute) -> Any:
    """Call `generate` as a user does; return the tokens that follow each prompt, [b new]."""
    key = jax.random.key(0)
    return generate(params, config, prompts, new, key, sampling=GREEDY, compute=compute).tokens


def compiled(what: str, case: Case, compute: Compute, new: int, setting: Setting) -> Program:
    """Compile the program of `generate` ahead of time; with --xla, compile a function that calls `generate`."""
    config, options = case.config, setting.options
    shapes = jax.eval_shape(unstack, abstract(config, setting.dtype))
    if options.xla:

        def run(params: Any, prompts: Any) -> Any:
            return greedy_tokens(params, config, prompts, new, compute)

        prompts = jax.ShapeDtypeStruct((case.batch, case.seq), jnp.int32)
        return prepare(what, run, (shapes, prompts), device=setting.device, options=options)

    def lowered() -> Any:
        prompts = jnp.zeros((case.batch, case.seq), jnp.int32)
        key = jax.random.key(0)
        return lower(shapes, config, prompts, new, key, sampling=GREEDY, compute=compute)

    known = count(config) * jnp.dtype(setting.dtype).itemsize
    return compile_ahead(what, lowered, known, device=setting.device, options=options)


def timed_call(
    program: Program, case: Case, compute: Compute, params: Any, prompts: Any, setting: Setting
) -> Callable[[int], Any]:
    """Return the call to time, which takes the number of new tokens: `generate`, or with --xla a program for each."""
    new = setting.options.new
    if not setting.options.xla:
        return lambda tokens: greedy_tokens(params, case.config, prompts, tokens, compute)
    programs = {1: compiled("decode's first token", case, compute, 1, setting), new: program}
    return lambda tokens: programs[tokens].run(params, prompts)


def work(case: Case, new: int, dtype: Any, cache: str) -> Work:
    """Return the work of the call: the prefill and the tokens after the first."""
    first, further = first_work(case, dtype), further_work(case, new, dtype, cache)
    return Work(*(a + b for a, b in zip(first, further, strict=True)))


def first_work(case: Case, dtype: Any) -> Work:
    """Return the work of the prefill, which unembeds one position of each prompt."""
    _, config, batch, seq = case
    unread = 2 * (seq - 1) * config.d_model * config.n_vocab
    return Work(
        tokens=batch,
        flops=batch * (forward_flops(config, seq) - unread),
        traffic=parameters_read(config, batch * seq, seq) * jnp.dtype(dtype).itemsize,
    )


def further_work(case: Case, new: int, dtype: Any, cache: str) -> Work:
    """Return the work of the new - 1 tokens after the first: each reads the parameters and the cache so far."""
    _, config, batch, seq = case
    pasts = [seq + i for i in range(new - 1)]
    seen = sum(rows_read(config, past) for past in pasts)
    parameters = len(pasts) * parameters_read(config, batch, 1) * jnp.dtype(dtype).itemsize
    return Work(
        tokens=batch * len(pasts),
        flops=batch * sum(forward_flops(config, 1, past) for past in pasts),
        traffic=parameters + batch * seen * cache_bytes(config, cache) // max(config.n_layers, 1),
    )


def rows_read(config: Config, past: int) -> int:
    """Return the number of cache rows that one token reads after `past` positions, summed over layers."""
    near = min(past, (config.window or 1) - 1)
    return sum(near if local else past for local in config.local_layers)


def parameters_read(config: Config, tokens: int, positions: int) -> int:
    """Return how many parameters these tokens and positions read; of a table with lookups, only the rows."""
    shapes = abstract(config)
    tables = 0 if shapes.W_pos is None else shapes.W_pos.size
    rows = 0 if shapes.W_pos is None else positions
    if not config.tied:
        tables += shapes.W_E.size
        rows += min(tokens, config.n_vocab)
    return count(config) - tables + rows * config.d_model


def cache_bytes(config: Config, cache: str) -> int:
    """Return the cache bytes of one position: a key and a value per layer and head; an int8 vector also has a scale."""
    size, dtype = config.sizes, jnp.dtype(cache)
    vector = size["h"] * dtype.itemsize + (4 if dtype == jnp.int8 else 0)
    return 2 * size["l"] * size["k"] * vector


def per_token(row: dict[str, Any], rest: Work, new: int, ceilings: Ceilings) -> dict[str, Any]:
    """Return the figures of the tokens after the first, `of_copy` included; that of the call is `call_of_copy`."""
    figures = {
        "new": new,
        "rest_flops": rest.flops,
        "rest_traffic": rest.traffic,
        "call_of_copy": row.get("of_copy"),
        "of_copy": None,
    }
    if new > 1 and "rest_median" in row:
        for end in ("median", "low", "high"):
            figures[f"token_{end}"] = row[f"rest_{end}"] / (new - 1)
        figures["of_copy"] = rest.traffic / row["rest_median"] / ceilings.copy
    return figures
