"""Jaxformer's program of a workload, compiled ahead of time, so that its memory is known before it runs."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.device import Device, check_fits
from benchmarks.options import Options
from jaxformer.config import Compute, Config
from jaxformer.model.transformer import forward
from jaxformer.sites import MODEL_SITES, available_sites


class Program(NamedTuple):
    """A compiled function, its compile time and its memory."""

    run: Callable[..., Any]
    trace_seconds: float
    compile_seconds: float
    peak_bytes: int  # arguments, results and temporaries, by XLA's own analysis

    @property
    def seconds(self) -> float:
        """The seconds of tracing and compiling."""
        return self.trace_seconds + self.compile_seconds

    def notes(self) -> dict[str, Any]:
        """The fields of a row."""
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
    """Compile for these arguments, which may be shapes, and refuse a program that does not fit into memory.

    Raises:
        ValueError: an XLA option that this compiler does not know, or too much memory.
    """
    # A new function each time, because JAX caches traces, which would not be timed.
    jitted = jax.jit(lambda *args: function(*args), donate_argnums=donate)
    known = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(arguments))
    return compile_ahead(
        what, lambda: jitted.lower(*arguments), known, device=device, options=options
    )


def compile_ahead(
    what: str, lower: Callable[[], Any], known: int, *, device: Device, options: Options
) -> Program:
    """Lower and compile, and time both. `known`: the bytes of the arguments.

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
            raise ValueError(f"XLA rejects --xla: {error}") from error
        raise
    done = time.perf_counter()
    peak = peak_bytes(compiled)
    check_fits(what, max(peak, known), device)
    return Program(compiled, traced - start, done - traced, peak)


def peak_bytes(compiled: Any) -> int:
    """Return the peak memory of a program; 0 if the backend does not report it."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return held + analysis.temp_size_in_bytes - analysis.alias_size_in_bytes


def batched_logits(
    config: Config, compute: Compute, at_once: int | None = None
) -> Callable[..., Any]:
    """Return a function (params, tokens [b t]) -> logits [b t v]."""

    def logits(params: Any, tokens: Any) -> Any:
        def one(sequence: Any) -> Any:
            return forward(params, config, sequence, compute=compute).logits

        if at_once is None:
            return jax.vmap(one)(tokens)
        return jax.lax.map(one, tokens, batch_size=at_once)

    return logits


def every_site(config: Config, compute: Compute) -> Callable[..., Any]:
    """Return a function (params, tokens [b t]) -> logits and activations of every site, layers in front."""
    axes = {site: 0 if site in MODEL_SITES else 1 for site in available_sites(config, compute)}

    def captured(params: Any, tokens: Any) -> Any:
        def one(sequence: Any) -> Any:
            out = forward(params, config, sequence, capture=tuple(axes), compute=compute)
            return out.logits, out.activations

        return jax.vmap(one, out_axes=(0, axes))(tokens)

    return captured


def new_seed() -> int:
    """Return another seed in every run; rows record it."""
    return time.time_ns() % 2**31


def random_tokens(config: Config, batch: int, seq: int, seed: int) -> Any:
    """Return random token ids, [b t]."""
    return jax.random.randint(jax.random.key(seed), (batch, seq), 0, config.n_vocab, jnp.int32)
