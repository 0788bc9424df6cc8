"""The peers hf-*: Hugging Face's GPT-2 in PyTorch, with our weights, and its `generate`."""
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.device import Device
from benchmarks.peers import UnsupportedError
from benchmarks.peers.pytorch import place, run_forward, run_train_step, tensor, waited
from jaxformer.config import Config
from jaxformer.model.params import Params
from jaxformer.pretrained.exporting import foreign_config, foreign_tensors
from jaxformer.pretrained.families import FAMILIES

hf: Any = transformers  # its annotations reject its own options

GPT2 = FAMILIES["gpt2"]


class Logits(nn.Module):
    """The model as a function from tokens to logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """[b t] -> [b t v]."""
        return self.model(tokens, use_cache=False).logits


def forward(
    params: Params,
    config: Config,
    tokens: Any,
    device: Device,
    *,
    attention: str,
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """Return a call that computes the logits of a batch."""
    return run_forward(
        Logits(build(params, config, device, attention)), tokens, device, compiled=compiled
    )


def train_step(
    params: Params,
    config: Config,
    windows: Any,
    device: Device,
    *,
    attention: str,
    dtype: str = "float32",
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """Return a call that makes one AdamW step and returns its loss."""
    model = Logits(build(params, config, device, attention))
    return run_train_step(model, windows, device, dtype=dtype, compiled=compiled)


def decode(
    params: Params,
    config: Config,
    prompts: Any,
    device: Device,
    *,
    attention: str,
    compiled: bool = False,
) -> Callable[[int], Tensor]:
    """Return a call that generates greedily with the key/value cache of transformers."""
    if compiled:
        raise UnsupportedError("generate does not compile with its default cache")
    model = build(params, config, device, attention).eval()
    batch = tensor(prompts).long().to(place(device))
    options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(batch)}

    def call(new: int) -> Tensor:
        with torch.inference_mode():
            tokens = model.generate(batch, max_new_tokens=new, min_new_tokens=new, **options)
        return tokens[:, batch.shape[1] :]

    return waited(call, device)


def build(params: Params, config: Config, device: Device, attention: str) -> Any:
    """Return GPT-2 with our weights, in their dtype.

    Raises:
        UnsupportedError: a choice of the Config that GPT-2 does not have.
    """
    try:
        fields = foreign_config(GPT2, config)
    except ValueError as error:
        raise UnsupportedError(str(error)) from error
    shape = hf.GPT2Config(
        **fields, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation=attention,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = hf.GPT2LMHeadModel(shape).to(dtype=getattr(torch, str(params.W_E.dtype)))
    weights = foreign_tensors(GPT2, params, config)
    found = model.load_state_dict({name: tensor(w) for name, w in weights.items()}, strict=False)
    if absent := set(found.missing_keys) - ({"lm_head.weight"} if config.tied else set()):
        raise UnsupportedError(
            f"GPT-2 differs in this version of transformers: there are no weights for {min(absent)}"
        )
    return model.to(device=place(device))
