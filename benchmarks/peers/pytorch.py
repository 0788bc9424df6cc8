"""The parts that the PyTorch peers share: a forward pass and a training step as calls to time."""
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn

from benchmarks.device import Device
from benchmarks.peers import ADAMW, UnsupportedError


def place(device: Device) -> str:
    """Return PyTorch's name of the device that JAX runs on.

    Raises:
        UnsupportedError: a device that this PyTorch does not have.
    """
    if device.platform == "cpu":
        return "cpu"
    if device.platform in ("gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    raise UnsupportedError(f"this PyTorch does not support {device.platform}")


def tensor(array: Any) -> Tensor:
    """Return a copy of an array as a tensor; narrow floats become float32, which is exact."""
    array = np.asarray(array)
    exact = array.dtype.kind in "iu" or array.dtype in (np.float64, np.float32)
    return torch.from_numpy(np.array(array if exact else array.astype(np.float32)))


def waited(call: Callable[..., Any], device: Device) -> Callable[..., Any]:
    """Make the call wait until a GPU has finished."""
    if device.platform == "cpu":
        return call

    def wait(*arguments: Any) -> Any:
        result = call(*arguments)
        torch.cuda.synchronize()
        return result

    return wait


def run_forward(
    model: nn.Module, tokens: Any, device: Device, *, compiled: bool
) -> Callable[[], Tensor]:
    """Return a call that computes the logits of a batch, without gradients."""
    batch = tensor(tokens).long().to(place(device))
    run = torch.compile(model.eval()) if compiled else model.eval()

    def call() -> Tensor:
        with torch.inference_mode():
            return run(batch)

    return waited(call, device)


def run_train_step(
    model: nn.Module, windows: Any, device: Device, *, dtype: str, compiled: bool
) -> Callable[[], Tensor]:
    """Return a call that makes one AdamW step, always on the same batch, and returns its loss.

    Parameters and optimizer are float32. With a narrower dtype, matrix products run under autocast.
    """
    batch = tensor(windows).long().to(place(device))
    narrow = torch.autocast(place(device), getattr(torch, dtype), enabled=dtype != "float32")
    run = torch.compile(model.train()) if compiled else model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=ADAMW["learning_rate"], betas=(ADAMW["b1"], ADAMW["b2"]),
        eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"], fused=True,
    )  # fmt: skip

    def call() -> Tensor:
        with narrow:
            logits = run(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return waited(call, device)
