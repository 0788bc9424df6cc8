"""Our side of every workload: a function compiled ahead of time, its cost known before it runs."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.device import Device, check_fits
from benchmarks.options import Options
from jaxformer.config import Compute, Config
from jaxformer.model.sites import WHOLE, shown
from jaxformer.model.transformer import forward


class Program(NamedTuple):
    """A compiled function and what it cost to get."""

    run: Callable[..., Any]
    trace_seconds: float
    compile_seconds: float
    peak_bytes: int  # arguments, results and temporaries, by XLA's own analysis

    @property
    def seconds(self) -> float:
        """From Python to machine code."""
        return self.trace_seconds + self.compile_seconds

    def notes(self) -> dict[str, Any]:
        """What a row says of it."""
        return {
            "trace_seconds": self.trace_seconds,
            "compile_seconds": self.compile_seconds,
            "peak_bytes": self.peak_bytes,
        }


def prepare(
    what: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    device: Device,
    options: Options,
    donate: tuple[int, ...] = (),
) -> Program:
    """Compile for arguments that need only shapes, and refuse what would not fit into memory.

    Raises:
        ValueError: an XLA option that this compiler does not know, or too much memory.
    """
    # A new function each time: JAX remembers what it has traced, and the clock must not.
    jitted = jax.jit(lambda *args: function(*args), donate_argnums=donate)
    known = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(arguments))
    return ahead(what, lambda: jitted.lower(*arguments), known, device=device, options=options)


def ahead(
    what: str, lower: Callable[[], Any], known: int, *, device: Device, options: Options
) -> Program:
    """Compile what is lowered on the clock; `known` bytes are those of its arguments.

    Raises:
        ValueError: an XLA option that this compiler does not know, or too much memory.
    """
    check_fits(what, known, device)
    start = time.perf_counter()
    lowered = lower()
    traced = time.perf_counter()
    known += sum(out.size * out.dtype.itemsize for out in jax.tree.leaves(lowered.out_info))
    check_fits(what, known, device)
    try:
        compiled = lowered.compile(compiler_options=options.compiler_options())
    except jax.errors.JaxRuntimeError as error:
        if options.xla and "option" in str(error):
            raise ValueError(f"XLA refuses --xla: {error}") from error
        raise
    done = time.perf_counter()
    peak = peak_bytes(compiled)
    check_fits(what, max(peak, known), device)
    return Program(compiled, traced - start, done - traced, peak)


def peak_bytes(compiled: Any) -> int:
    """What a program holds at its widest; 0 where the backend does not say."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return held + analysis.temp_size_in_bytes - analysis.alias_size_in_bytes


def batched_logits(
    config: Config, compute: Compute, at_once: int | None = None
) -> Callable[..., Any]:
    """(params, tokens [b t]) -> logits [b t v]."""

    def logits(params: Any, tokens: Any) -> Any:
        def one(sequence: Any) -> Any:
            return forward(params, config, sequence, compute=compute).logits

        if at_once is None:
            return jax.vmap(one)(tokens)
        return jax.lax.map(one, tokens, batch_size=at_once)

    return logits


def every_site(config: Config, compute: Compute) -> Callable[..., Any]:
    """(params, tokens [b t]) -> logits and all activations, layers in front where there are layers."""
    axes = {site: 0 if site in WHOLE else 1 for site in shown(config, compute)}

    def seen(params: Any, tokens: Any) -> Any:
        def one(sequence: Any) -> Any:
            out = forward(params, config, sequence, capture=tuple(axes), compute=compute)
            return out.logits, out.activations

        return jax.vmap(one, out_axes=(0, axes))(tokens)

    return seen


def fresh_seed() -> int:
    """Another one in every run; a row keeps it."""
    return time.time_ns() % 2**31


def random_tokens(config: Config, batch: int, seq: int, seed: int) -> Any:
    """Fresh ids, [b t]."""
    return jax.random.randint(jax.random.key(seed), (batch, seq), 0, config.n_vocab, jnp.int32)
