"""Greedy decoding by `jaxformer.generate`: the first token behind a prompt apart from those that follow."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, stretched
from benchmarks.contest import (
    Contender,
    Setting,
    Work,
    contest,
    enter_ours,
    gather,
    in_float32_only,
)
from benchmarks.options import Options
from benchmarks.program import Program, ahead, fresh_seed, prepare, random_tokens
from benchmarks.roofline import Ceilings
from jaxformer.config import Compute, Config
from jaxformer.decoding.generate import generate, lower
from jaxformer.decoding.sampling import Sampling
from jaxformer.model.params import abstract, count, init, unstack
from train.plan.flops import forward_flops

GREEDY = Sampling(temperature=0)
BATCHES = {"baby": (1, 8, 64)}
"""Prompts in a batch, by size; elsewhere 1 and 8."""
PROMPTS = {"gpt2-124m": 128}
"""Tokens in a prompt, by size; elsewhere half of a sequence, which leaves room for what follows."""


def prompted(case: Case, options: Options) -> Iterator[Case]:
    """The case with the batches and the prompts of decoding, where the options name none."""
    seq = case.seq if options.seq else PROMPTS.get(case.name, max(case.seq // 2, 1))
    for batch in (case.batch,) if options.batch else BATCHES.get(case.name, (1, 8)):
        yield case._replace(batch=batch, seq=seq)


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """One row per implementation and per --cache; each is timed whole, and with one new token.

    Every peer must add our tokens. In a narrow dtype two right implementations may choose others, so
    peers run in float32 only; with a narrow cache so may ours, and its row says how many are the same.
    """
    name, _, batch, seq = case
    jax.clear_caches()  # JAX remembers what it has compiled, and the clock must not
    new, dtype = setting.options.new, jnp.dtype(setting.dtype)
    case = case._replace(config=stretched(case.config, seq + new))
    computes = ways(setting)
    programs = {
        kept: compiled(f"decode {name} {batch} x {seq}, {kept} cache", case, compute, new, setting)
        for kept, compute in computes.items()
    }
    params = init(case.config, jax.random.key(0), dtype)
    ours_params = unstack(params)  # as one does who generates more than once
    seed = fresh_seed()
    prompts = random_tokens(case.config, batch, seq, seed=seed)

    def enter_one(kept: str) -> Contender:
        build = partial(
            calling, programs[kept], case, computes[kept], ours_params, prompts, setting
        )
        notes = {"kernel": setting.kernel, "cache": kept, "seed": seed}
        return enter_ours(programs[kept], build, new=new, **notes)

    ours, *narrow = [enter_one(kept) for kept in computes]
    narrow = [
        one._replace(
            name=f"jaxformer, {one.notes['cache']}",  # of the cache
            work=work(case, new, dtype, one.notes["cache"]),
            notes=one.notes | {"same_tokens": float((one.result == ours.result).mean())},
            exact=False,
        )
        for one in narrow
    ]
    others = in_float32_only(setting, "greedy choices are compared in float32 only")
    peers = gather(others, "decode", (case.config, params, prompts, setting.device), new=new)
    done = work(case, new, dtype, setting.dtype)
    for row in contest(ours, [*narrow, *peers], done, 0.0, setting):
        rest = further_work(case, new, dtype, row.get("cache", setting.dtype))
        yield row | per_token(row, rest, new, setting.ceilings)


def ways(setting: Setting) -> dict[str, Compute]:
    """How ours runs, by the dtype of its cache; first the one that is everybody's."""
    kept: list[Any] = [cache for cache in setting.options.cache if cache != setting.dtype]
    narrow = {cache: Compute(kernel=setting.kernel, cache=cache) for cache in kept}
    return {setting.dtype: Compute(kernel=setting.kernel), **narrow}


def door(config: Config, compute: Compute, new: int, params: Any, prompts: Any) -> Any:
    """What a user calls: the likeliest tokens that follow each prompt, [b new]."""
    key = jax.random.key(0)
    return generate(params, config, prompts, new, key, sampling=GREEDY, compute=compute).tokens


def compiled(what: str, case: Case, compute: Compute, new: int, setting: Setting) -> Program:
    """The program that the door runs, compiled ahead; with --xla the door itself is what is compiled."""
    config, options = case.config, setting.options
    shapes = jax.eval_shape(unstack, abstract(config, setting.dtype))
    if options.xla:
        prompts = jax.ShapeDtypeStruct((case.batch, case.seq), jnp.int32)
        run = partial(door, config, compute, new)
        return prepare(what, run, (shapes, prompts), device=setting.device, options=options)

    def lowered() -> Any:
        prompts = jnp.zeros((case.batch, case.seq), jnp.int32)
        key = jax.random.key(0)
        return lower(shapes, config, prompts, new, key, sampling=GREEDY, compute=compute)

    known = count(config) * jnp.dtype(setting.dtype).itemsize
    return ahead(what, lowered, known, device=setting.device, options=options)


def calling(
    program: Program, case: Case, compute: Compute, params: Any, prompts: Any, setting: Setting
) -> Callable[[int], Any]:
    """The call to time, which takes the number of new tokens: the door, or with --xla a program for each."""
    new = setting.options.new
    if not setting.options.xla:
        return lambda tokens: door(case.config, compute, tokens, params, prompts)
    programs = {1: compiled("decode's first token", case, compute, 1, setting), new: program}
    return lambda tokens: programs[tokens].run(params, prompts)


def work(case: Case, new: int, dtype: Any, cache: str) -> Work:
    """Of the whole call: reading the prompts, and what follows."""
    first, further = first_work(case, dtype), further_work(case, new, dtype, cache)
    return Work(*(a + b for a, b in zip(first, further, strict=True)))


def first_work(case: Case, dtype: Any) -> Work:
    """Of reading the prompts, of each of which one position is unembedded."""
    _, config, batch, seq = case
    unread = 2 * (seq - 1) * config.d_model * config.n_vocab
    return Work(
        tokens=batch,
        flops=batch * (forward_flops(config, seq) - unread),
        traffic=parameters_read(config, batch * seq, seq) * jnp.dtype(dtype).itemsize,
    )


def further_work(case: Case, new: int, dtype: Any, cache: str) -> Work:
    """Of the new - 1 tokens after the first: each reads the parameters, and the cache so far."""
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
    """Positions that a token behind so many needs of the cache, in all layers together."""
    near = min(past, (config.window or 1) - 1)
    return sum(near if local else past for local in config.local_layers)


def parameters_read(config: Config, tokens: int, positions: int) -> int:
    """Parameters that so many tokens at so many positions need: of a table that is only looked up, their rows."""
    shapes = abstract(config)
    tables = 0 if shapes.W_pos is None else shapes.W_pos.size
    rows = 0 if shapes.W_pos is None else positions
    if not config.tied:
        tables += shapes.W_E.size
        rows += min(tokens, config.n_vocab)
    return count(config) - tables + rows * config.d_model


def cache_bytes(config: Config, cache: str) -> int:
    """Of one position: a key and a value per layer and head; as int8 each with a float32 scale."""
    size, dtype = config.sizes, jnp.dtype(cache)
    vector = size["h"] * dtype.itemsize + (4 if dtype == jnp.int8 else 0)
    return 2 * size["l"] * size["k"] * vector


def per_token(row: dict[str, Any], rest: Work, new: int, ceilings: Ceilings) -> dict[str, Any]:
    """The figures of the tokens after the first; `of_copy` is theirs, the whole call's has its own name."""
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
