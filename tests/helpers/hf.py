"""Transformers' side of the comparisons: tiny models with weights of small whole numbers, in float32 or in float64."""
# pyright: reportMissingImports=false

import contextlib
import functools
import hashlib
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers

from tests.helpers.families import CASES, TOKENS

importlib.import_module(
    "safetensors.torch"
)  # makes a table of dtypes, which must not see `widened`

SAVED_AS = {("gpt_neox", "lm_head.weight"): "embed_out.weight"}
"""Where transformers gives a tensor another name in files."""


def build(case: str) -> Any:
    """The tiny model, its weights k/64 with k whole and |k| ≤ 40: exact in every dtype but float8."""
    family, kind, options = CASES[case]
    config_class = getattr(transformers, kind).config_class
    config = config_class(**options, attn_implementation="eager")
    assert config.model_type == family
    model = getattr(transformers, kind)(config).eval()
    for name, weight in model.state_dict(keep_vars=True).items():
        if isinstance(weight, torch.nn.Parameter):
            weight.data = torch.from_numpy(whole(name, tuple(weight.shape))).to(weight.dtype) / 64
    model.tie_weights()
    return model


def whole(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Whole numbers by a tensor's name and shape; those of a norm are near 1."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    drawn = np.random.default_rng(seed).integers(-40, 41, shape)
    return drawn // 2 + 64 if "norm" in name or "ln_" in name else drawn


@contextlib.contextmanager
def widened() -> Iterator[None]:
    """What asks torch for float32 gets float64, so that no step inside a double model is rounded."""
    real = torch.float32, torch.float, torch.Tensor.float
    try:
        torch.float32 = torch.float = torch.float64
        torch.Tensor.float = torch.Tensor.double
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = real


@functools.lru_cache
def answers(case: str) -> dict[str, np.ndarray]:
    """Logits, the gradients of the loss by every tensor, and eight greedy tokens, all in float64."""
    with widened():
        torch.set_default_dtype(torch.float64)
        try:
            model = build(case).double()
            return outcome(model)
        finally:
            torch.set_default_dtype(real_float)


real_float = torch.get_default_dtype()


def outcome(model: Any) -> dict[str, np.ndarray]:
    """The same of a model, in its dtype."""
    tokens = torch.tensor([TOKENS])
    logits = model(tokens, use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:])
    loss.backward()
    found = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    for name, weight in model.named_parameters():
        found[f"gradient {SAVED_AS.get((model.config.model_type, name), name)}"] = (
            weight.grad.numpy()
        )
    greedy = list(TOKENS)
    with torch.no_grad():
        for _ in range(8):
            greedy.append(
                int(model(torch.tensor([greedy]), use_cache=False).logits[0, -1].argmax())
            )
    found["greedy"] = np.array(greedy[len(TOKENS) :])
    return found
