"""The jitted, vmapped forward pass over a table of sizes."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.roofline import forward_flops, matmul_rate
from benchmarks.timing import time_calls
from jaxformer.config import Compute, Config
from jaxformer.transformer import forward, init


def sized(n_layers: int, n_heads: int, d_model: int, n_vocab: int, **choices: Any) -> Config:
    """A Config with heads that fill the stream and an MLP four times as wide."""
    return Config(
        n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_head=d_model // n_heads,
        d_mlp=4 * d_model, n_vocab=n_vocab, **choices,
    )  # fmt: skip


GPT2: dict[str, Any] = {
    "position": "learned", "norm": "layer", "activation": "gelu_tanh", "bias": "all", "tied": True,
}  # fmt: skip

SIZES: dict[str, tuple[Config, int, int]] = {
    "seed": (sized(4, 4, 128, 65), 12, 64),
    "baby": (sized(4, 4, 128, 65, **GPT2, n_context=64), 12, 64),
    "char": (sized(6, 6, 384, 65, **GPT2, n_context=256), 16, 256),
    "gpt2-124m": (sized(12, 12, 768, 50_257, **GPT2, n_context=1024), 1, 512),
}
"""By name: Config, sequences in a batch, tokens in a sequence."""


def measure(names: list[str], dtype: Any, repeats: int) -> Iterator[dict[str, Any]]:
    """One row per size; times in seconds, rates per second."""
    ceiling = matmul_rate(dtype)
    for name in names:
        config, batch, context = SIZES[name]
        params = init(config, jax.random.key(0))
        tokens = jax.random.randint(
            jax.random.key(1), (batch, context), 0, config.n_vocab, jnp.int32
        )
        compute = Compute(dtype=dtype)

        @jax.jit
        def run(
            params: Any, tokens: Any, config: Config = config, compute: Compute = compute
        ) -> Any:
            one = lambda sequence: forward(params, config, sequence, compute=compute).logits  # noqa: E731
            return jax.vmap(one)(tokens)

        timing = time_calls(
            lambda run=run, params=params, tokens=tokens: run(params, tokens), repeats=repeats
        )
        flops = batch * forward_flops(config, context)
        yield {
            "workload": "forward",
            "size": name,
            "batch": batch,
            "context": context,
            "dtype": dtype,
            **timing._asdict(),
            "tokens_per_second": batch * context / timing.median,
            "flops": flops,
            "flops_per_second": flops / timing.median,
            "matmul_flops_per_second": ceiling,
            "fraction_of_matmul": flops / timing.median / ceiling,
        }
