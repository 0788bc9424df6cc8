"""The forward workload: the jitted, vmapped forward pass of each implementation on the same weights and tokens."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case
from benchmarks.comparison import Setting, Work, compare, enter_jaxformer, enter_peers
from benchmarks.program import batched_logits, every_site, new_seed, prepare, random_tokens
from benchmarks.roofline import forward_bytes
from jaxformer.config import Compute
from jaxformer.model.params import abstract, init
from train.plan.flops import forward_flops

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
"""The largest allowed difference of logits, relative to the largest logit."""


def rows(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield one row per implementation."""
    name, config, batch, seq = case
    options, dtype = setting.options, jnp.dtype(setting.dtype)
    compute = Compute(kernel=setting.kernel)
    what = f"forward {name} {batch} x {seq}"
    shapes = abstract(config, dtype), jax.ShapeDtypeStruct((batch, seq), jnp.int32)
    compiled = partial(prepare, arguments=shapes, device=setting.device, options=options)
    program = compiled(what, batched_logits(config, compute, options.map))
    params = init(config, jax.random.key(0), dtype)
    seed = new_seed()
    tokens = random_tokens(config, batch, seq, seed=seed)
    ours = enter_jaxformer(
        program, lambda: partial(program.run, params, tokens), kernel=compute.kernel, seed=seed
    )
    others = enter_peers(setting, "forward", (params, config, tokens, setting.device))
    if options.capture:
        captured = compiled(f"{what}, every site", every_site(config, compute))
        entered = enter_jaxformer(captured, lambda: partial(captured.run, params, tokens))
        seen = entered._replace(name="jaxformer, every site", result=entered.result[0])
        others.insert(0, seen)
    work = Work(
        tokens=batch * seq,
        flops=batch * forward_flops(config, seq),
        traffic=forward_bytes(config, batch, seq, dtype.itemsize),
    )
    yield from compare(ours, others, work, TOLERANCES[setting.dtype], setting)
