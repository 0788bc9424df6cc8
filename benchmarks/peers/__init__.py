"""Peers: other implementations of the same architectures, run with jaxformer's weights.

Each module has one function per workload that it supports: `forward`, `train_step`, `decode`, and for the workload
patching `patching`, `paths` and `attribution`. The function takes weights, a Config and tokens, and returns the call
to time. The call of `decode` takes the number of tokens to generate.
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from jaxformer.config import Config
from jaxformer.config_checks import flat_fields, unread_fields

ADAMW: dict[str, Any] = {
    "learning_rate": 1e-3,
    "b1": 0.9,
    "b2": 0.95,
    "eps": 1e-8,
    "weight_decay": 0.1,
}
"""The optimizer of every training step, as arguments of `optax.adamw`; every parameter has weight decay."""


class UnsupportedError(ValueError):
    """A peer is not installed, or does not support a workload or a Config; the message says which."""


class Peer(NamedTuple):
    """A peer: its module, the packages that it needs, how to install them, and options of its functions."""

    module: str
    needs: tuple[str, ...]
    install: str
    options: dict[str, Any]


TORCH = "pip install torch"
HF = "pip install torch transformers"
LENS = "pip install 'transformer-lens>=4.3,<5'"

PEERS: dict[str, Peer] = {
    "flax-nnx": Peer("flax_nnx", ("flax",), "pip install flax", {}),
    "torch": Peer("torch_gpt", ("torch",), TORCH, {}),
    "torch-compile": Peer("torch_gpt", ("torch",), TORCH, {"compiled": True}),
    "hf-eager": Peer("huggingface", ("torch", "transformers"), HF, {"attention": "eager"}),
    "hf-sdpa": Peer("huggingface", ("torch", "transformers"), HF, {"attention": "sdpa"}),
    "hf-compile": Peer(
        "huggingface", ("torch", "transformers"), HF, {"attention": "sdpa", "compiled": True}
    ),
    "lens": Peer("lens", ("torch", "transformers", "transformer_lens"), LENS, {}),
}


def refuse_others(config: Config, peer: str, known: Iterable[str]) -> None:
    """Refuse a Config in which a field that the peer does not support differs from its default.

    This also refuses fields that Config gets later, until the peer lists them as supported.

    Raises:
        UnsupportedError: naming the first such field.
    """
    sizes: Any = {f.name: 1 for f in dataclasses.fields(Config) if f.default is dataclasses.MISSING}
    defaults = flat_fields(Config(**sizes))
    for name, value in flat_fields(config).items():
        skipped = {*sizes, *known, *unread_fields(config)}
        if name not in skipped and value != defaults[name]:
            raise UnsupportedError(f"{peer} has no {name}={value!r}, only {defaults[name]!r}")


def chosen(names: Iterable[str]) -> list[str]:
    """Return the names of the peers, with `all` and `none` resolved.

    Raises:
        ValueError: an unknown name.
    """
    names = tuple(names)
    if names == ("none",):
        return []
    if names == ("all",):
        return list(PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(
            f"there is no peer {unknown[0]!r}; choose from {', '.join(PEERS)}, all, none"
        )
    return list(names)


def peer_function(name: str, workload: str) -> Callable[..., Callable[..., Any]]:
    """Return a peer's function for a workload.

    Raises:
        UnsupportedError: the peer is not installed, or does not support the workload.
    """
    peer = PEERS[name]
    if missing := [package for package in peer.needs if not importlib.util.find_spec(package)]:
        raise UnsupportedError(f"it needs {missing[0]}; {peer.install}")
    module = importlib.import_module(f"benchmarks.peers.{peer.module}")
    function = getattr(module, workload, None)
    if function is None:
        raise UnsupportedError(f"it does not support {workload.replace('_', '-')}")
    return partial(function, **peer.options)
