"""Other people's implementations of the same architectures, run with our weights.

Each module below has a function for each workload that it takes part in (`forward`, `train_step`, `decode`;
`patching`, `paths` and `attribution`, which are all of the workload patching): it is given our Config, weights
and tokens, and returns the call to time; that of `decode` takes the number of tokens to add to each prompt.
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from jaxformer.config import Config

ADAMW: dict[str, Any] = {
    "learning_rate": 1e-3,
    "b1": 0.9,
    "b2": 0.95,
    "eps": 1e-8,
    "weight_decay": 0.1,
}
"""Of every training step, ours too, as `optax.adamw` takes it: decay on every parameter."""


class UnsupportedError(ValueError):
    """This peer is not installed, or does not do what is asked; the message says which."""


class Peer(NamedTuple):
    """Where a peer lives, what it needs, and how to get that."""

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
    """Refuse a Config whose fields are not all known to a peer; what it does not know must be at its default.

    A field that Config gets later is refused as well, until a peer knows it.

    Raises:
        UnsupportedError: naming the first such field.
    """
    for field in dataclasses.fields(Config):
        value, default = getattr(config, field.name), field.default
        if default is not dataclasses.MISSING and field.name not in known and value != default:
            raise UnsupportedError(f"{peer} has no {field.name}={value!r}, only {default!r}")


def chosen(names: Iterable[str]) -> list[str]:
    """The peers' names, with `all` and `none` resolved.

    Raises:
        ValueError: an unknown name.
    """
    names = tuple(names)
    if names == ("none",):
        return []
    if names == ("all",):
        return list(PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"no peer {unknown[0]!r}; choose from {', '.join(PEERS)}, all, none")
    return list(names)


def entrance(name: str, workload: str) -> Callable[..., Callable[..., Any]]:
    """A peer's function for a workload.

    Raises:
        UnsupportedError: it is not installed, or takes no part.
    """
    peer = PEERS[name]
    if missing := [package for package in peer.needs if not importlib.util.find_spec(package)]:
        raise UnsupportedError(f"needs {missing[0]}; {peer.install}")
    module = importlib.import_module(f"benchmarks.peers.{peer.module}")
    function = getattr(module, workload, None)
    if function is None:
        raise UnsupportedError(f"takes no part in {workload.replace('_', '-')}")
    return partial(function, **peer.options)
