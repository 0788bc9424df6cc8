"""TransformerLens around Hugging Face's GPT-2 with our weights: its patching, in a loop over forward passes."""
# pyright: reportMissingImports=false

from typing import Any

from transformer_lens.model_bridge.sources import build_bridge_from_module

from benchmarks.device import Device
from benchmarks.peers import huggingface
from jaxformer.config import Config
from jaxformer.params import Params


def build(config: Config, params: Params, device: Device) -> Any:
    """TransformerLens's bridge to GPT-2 of this Config with our weights, unfolded.

    Since version 4 it has no model of its own: it puts hooks around one of transformers, whose attention
    must be eager. Nothing is downloaded.

    Raises:
        UnsupportedError: anything that GPT-2 does not have.
    """
    model = huggingface.build(config, params, device, "eager").eval()
    bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config)
    return bridge.eval()
