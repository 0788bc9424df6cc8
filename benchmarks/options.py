"""The options of every workload."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxformer.config import Kernel, Saved

Workload = Literal[
    "suite", "forward", "train-step", "decode", "compile", "parity", "patching", "memory",
]  # fmt: skip
KERNELS: dict[str, Kernel] = {"cpu": "blocked", "gpu": "fused", "cuda": "fused"}
"""The attention kernel of each platform; elsewhere einsum."""
DTypeName = Literal["float32", "bfloat16", "float16"]
CacheName = Literal["int8", "bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time jaxformer beside its peers and beside what this device can do.

    Without a workload: a suite of the most telling ones, in under four minutes on two CPU cores.
    """

    workload: Annotated[Workload, tyro.conf.Positional] = "suite"
    """forward: the jitted, vmapped pass; train-step: gradient and AdamW; decode: generate, greedily;
    compile: how compile time and cost grow with depth and length; parity: errors against float64;
    patching: activation patching, path patching and attribution; memory: what a training step holds, and ways
    to hold less"""
    sizes: tuple[str, ...] = ()
    """seed, baby, char, gpt2-124m; each workload has its own default"""
    config: str | None = None
    """a Config as JSON, or a model, whose Config it is, in place of a size: a folder of ours or of Hugging Face, its
    config.json, a GGUF file, a hub id; the weights are random"""
    set: tuple[str, ...] = ()
    """FIELD=VALUE: changes to the Config of every size"""
    dtype: tuple[DTypeName, ...] = ("float32",)
    """of parameters and matrix products"""
    batch: tuple[int, ...] = ()
    """sequences in a batch; several are each timed"""
    seq: tuple[int, ...] = ()
    """tokens in a sequence (decode: in the prompt); several are each timed"""
    new: int = 32
    """decode: tokens to add to each prompt; the first is also timed apart from the others"""
    cache: tuple[CacheName, ...] = ()
    """decode: add a row for each, that keeps keys and values so; without: only in dtype"""
    depths: tuple[int, ...] = (2, 4, 8, 16, 32, 48)
    """compile: layers to try"""
    lengths: tuple[int, ...] = (64, 256, 1024, 4096, 8192)
    """compile: tokens in one sequence to try"""
    budget: int = 1024
    """patching: MiB that a sweep may hold beside the parameters"""
    kernel: Literal["auto", "einsum", "blocked", "fused"] = "auto"
    """our attention; auto: blocked on CPU, fused on GPU, einsum elsewhere"""
    map: int | None = None
    """forward: run our batch so many sequences at a time (`jax.lax.map`): less memory, often less time"""
    accumulate: int = 1
    """train-step, memory: cut our batch into so many parts, whose gradients are summed: less memory, often less time"""
    unroll: int | None = None
    """train-step, memory: residual blocks per turn of our layer loop; if left out: all; memory: one"""
    saved: tuple[Saved, ...] = ()
    """memory: the sites whose values a row's backward pass keeps, in place of our choices"""
    vocab_chunk: int | None = None
    """memory: entries of the vocabulary whose logits a row's step has at once; 4096 if left out"""
    capture: bool = False
    """forward: add a row that also returns every site, and use the kernel that shows them all"""
    xla: tuple[str, ...] = ()
    """OPTION=VALUE: XLA options to compile our programs with"""
    peers: tuple[str, ...] = ("all",)
    """flax-nnx, torch, torch-compile, hf-eager, hf-sdpa, hf-compile, lens; all; none"""
    device: str | None = None
    """cpu, gpu, cuda, rocm or tpu; JAX's first choice if left out"""
    repeats: int = 10
    """timed rounds, in each of which every implementation has its turn"""
    seconds: float = 20.0
    """start no further round of one row after this long, once there are three"""
    json: Path | None = None
    """a file to add one JSON line per row to"""
    plot: Path | None = None
    """a PNG to draw: the roofline, and the ratios as bars"""

    def check(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: a number below what makes sense, options that exclude each other, or no VALUE.
        """
        for name in ("repeats", "new", "map", "accumulate", "unroll", "budget", "vocab_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not self.seconds >= 0:
            raise ValueError(f"seconds={self.seconds} must be a number of at least 0")
        for name in ("sizes", "dtype", "peers", "cache"):
            given = getattr(self, name)
            if len(set(given)) < len(given) or (name == "dtype" and not given):
                raise ValueError(
                    f"--{name} {' '.join(map(str, given))}: give each once, and at least one"
                )
        for path in (self.json, self.plot):
            if path is not None and not path.absolute().parent.is_dir():
                raise ValueError(
                    f"{path} cannot be written: there is no folder {path.absolute().parent}"
                )
        if self.cache and self.workload not in ("decode", "suite"):
            raise ValueError(
                f"--cache {' '.join(self.cache)} is for decode; {self.workload} has no cache to keep"
            )
        for name in ("saved", "vocab_chunk"):
            if getattr(self, name) and self.workload != "memory":
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is for memory; {self.workload} does not read it")
        if self.capture and (self.map is not None or self.workload != "forward"):
            raise ValueError("--capture is for forward, and without --map: it runs the whole batch")
        if self.capture and self.kernel not in ("auto", "einsum"):
            raise ValueError(
                f"kernel={self.kernel} does not show every site; --capture needs einsum"
            )
        for name in ("depths", "lengths"):
            if low := [n for n in getattr(self, name) if n < 1]:
                raise ValueError(f"{name}={low[0]} must be at least 1")
        self.compiler_options()

    def compiler_options(self) -> dict[str, Any]:
        """The XLA options, as `jax.jit(..., compiler_options=...)` takes them."""
        parsed: dict[str, Any] = {}
        for text in self.xla:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"cannot set {text!r}; write OPTION=VALUE")
            words = {"true": True, "false": False}
            parsed[name] = words.get(value.lower(), int(value) if value.isdecimal() else value)
        return parsed

    def compute_kernel(self, platform: str) -> Kernel:
        """The attention kernel on a platform."""
        if self.kernel != "auto":
            return self.kernel
        if self.capture:
            return "einsum"
        return KERNELS.get(platform, "einsum")
