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
"""The default attention kernel of each platform; einsum elsewhere."""
DTypeName = Literal["float32", "bfloat16", "float16"]
CacheName = Literal["int8", "bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time jaxformer, compare it with its peers, and relate both to the measured limits of this device.

    Without a workload, run a suite of all but memory, which takes less than four minutes on two CPU cores.
    """

    workload: Annotated[Workload, tyro.conf.Positional] = "suite"
    """forward: the jitted, vmapped forward pass; train-step: gradient and AdamW; decode: greedy generation; compile:
    compile time and run time by depth and sequence length; parity: logit errors against float64; patching: activation
    patching, path patching and attribution; memory: peak memory of a training step, and of ways to lower it"""
    sizes: tuple[str, ...] = ()
    """sizes to time: seed, baby, char, gpt2-124m; each workload has its own default"""
    config: str | None = None
    """instead of a size, the Config of this JSON file or model (a folder of jaxformer or Hugging Face, a config.json, a
    GGUF file, a hub id); the weights are random"""
    set: tuple[str, ...] = ()
    """FIELD=VALUE: fields to change in the Config of every size"""
    dtype: tuple[DTypeName, ...] = ("float32",)
    """dtype of parameters and matrix products; each is timed"""
    batch: tuple[int, ...] = ()
    """batch sizes; each is timed"""
    seq: tuple[int, ...] = ()
    """sequence lengths (decode: prompt lengths); each is timed"""
    new: int = 32
    """decode: tokens to generate per prompt; the first is also timed separately"""
    cache: tuple[CacheName, ...] = ()
    """decode: dtypes of the key/value cache to time, in addition to --dtype"""
    depths: tuple[int, ...] = (2, 4, 8, 16, 32, 48)
    """compile: numbers of layers"""
    lengths: tuple[int, ...] = (64, 256, 1024, 4096, 8192)
    """compile: sequence lengths, at batch size 1"""
    budget: int = 1024
    """patching: memory limit of a sweep in MiB, parameters excluded"""
    kernel: Literal["auto", "einsum", "blocked", "fused"] = "auto"
    """jaxformer's attention kernel. auto: blocked on CPU, fused on GPU, einsum elsewhere"""
    map: int | None = None
    """forward: run jaxformer on this many sequences at a time (`jax.lax.map`): less memory, often less time"""
    accumulate: int = 1
    """train-step, memory: gradient accumulation, jaxformer's micro-batches per step: less memory, often less time"""
    unroll: int | None = None
    """train-step, memory: residual blocks per iteration of jaxformer's layer loop. None: all; for memory: one"""
    saved: tuple[Saved, ...] = ()
    """memory: the sites whose values the backward pass keeps, instead of the default choices"""
    vocab_chunk: int | None = None
    """memory: vocabulary entries whose logits are computed at a time. None: 4096"""
    capture: bool = False
    """forward: add a row that captures every site, and use the einsum kernel, which has them all"""
    xla: tuple[str, ...] = ()
    """OPTION=VALUE: XLA options for jaxformer's programs"""
    peers: tuple[str, ...] = ("all",)
    """implementations to compare: flax-nnx, torch, torch-compile, hf-eager, hf-sdpa, hf-compile, lens; all; none"""
    device: str | None = None
    """cpu, gpu, cuda, rocm or tpu. None: JAX's default"""
    repeats: int = 10
    """timed rounds; each round times every implementation once"""
    seconds: float = 20.0
    """time limit per case: after this many seconds and three rounds, start no further round"""
    json: Path | None = None
    """append one JSON line per row to this file"""
    plot: Path | None = None
    """draw a PNG: a roofline plot, and the time ratios as bars"""

    def check(self) -> None:
        """Refuse options that cannot be run.

        Raises:
            ValueError: a number that is too small, options that exclude each other, or an OPTION without a VALUE.
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
                    f"--{name} {' '.join(map(str, given))} must name at least one value, and each only once"
                )
        for path in (self.json, self.plot):
            if path is not None and not path.absolute().parent.is_dir():
                raise ValueError(
                    f"{path} cannot be written: there is no folder {path.absolute().parent}"
                )
        if self.cache and self.workload not in ("decode", "suite"):
            raise ValueError(
                f"--cache {' '.join(self.cache)} is for decode; {self.workload} has no key/value cache"
            )
        for name in ("saved", "vocab_chunk"):
            if getattr(self, name) and self.workload != "memory":
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is for memory; {self.workload} does not read it")
        if self.capture and (self.map is not None or self.workload != "forward"):
            raise ValueError(
                "--capture is for forward without --map, because it runs the batch at once"
            )
        if self.capture and self.kernel not in ("auto", "einsum"):
            raise ValueError(
                f"kernel={self.kernel} does not have every site; --capture needs kernel=einsum"
            )
        for name in ("depths", "lengths"):
            if low := [n for n in getattr(self, name) if n < 1]:
                raise ValueError(f"{name}={low[0]} must be at least 1")
        self.compiler_options()

    def compiler_options(self) -> dict[str, Any]:
        """Return the XLA options, as `jax.jit(..., compiler_options=...)` takes them."""
        parsed: dict[str, Any] = {}
        for text in self.xla:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"cannot set {text!r}; write OPTION=VALUE")
            words = {"true": True, "false": False}
            parsed[name] = words.get(value.lower(), int(value) if value.isdecimal() else value)
        return parsed

    def compute_kernel(self, platform: str) -> Kernel:
        """Return the attention kernel for a platform."""
        if self.kernel != "auto":
            return self.kernel
        if self.capture:
            return "einsum"
        return KERNELS.get(platform, "einsum")
