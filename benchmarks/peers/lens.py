"""The peer lens: TransformerLens on GPT-2 with our weights. It patches in a loop over forward passes."""
# pyright: reportMissingImports=false

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformer_lens import patching as lens
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from benchmarks.device import Device
from benchmarks.peers import huggingface
from benchmarks.peers.pytorch import place, tensor, waited
from jaxformer.config import Config
from jaxformer.model.params import Params


def build(params: Params, config: Config, device: Device) -> Any:
    """Return TransformerLens's bridge to GPT-2 with our weights, not folded.

    Since version 4, TransformerLens has no model of its own: it puts hooks around a model of transformers, whose
    attention must be eager. Nothing is downloaded.

    Raises:
        UnsupportedError: a choice of the Config that GPT-2 does not have.
    """
    model = huggingface.build(params, config, device, "eager").eval()
    bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config)
    return bridge.eval()


def patching(
    params: Params,
    config: Config,
    clean: Any,
    corrupted: Any,
    device: Device,
    *,
    metric: Callable[[Tensor], Tensor],
    site: str,
    by: tuple[str, ...],
    cells: np.ndarray,
) -> Callable[[], Tensor]:
    """Return a call that computes the metric with each of these cells patched; the clean cache is computed before."""
    model = build(params, config, device)
    batches = [ids(tokens, device) for tokens in (clean, corrupted)]
    axes = [name for name in ("layer", "position", "head") if name in by]  # the setters' order
    index = pd.DataFrame(cells[:, [by.index(name) for name in axes]], columns=axes)
    with torch.inference_mode():
        cache = model.run_with_cache(batches[0])[1]

    def call() -> Tensor:
        with torch.inference_mode(), redirect_stderr(io.StringIO()):  # hides its progress bar
            return lens.generic_activation_patch(
                model, batches[1], cache, metric, SETTERS[tuple(axes)], site, index_df=index
            )

    return waited(call, device)


SETTERS = {
    ("layer", "position"): lens.layer_pos_patch_setter,
    ("layer", "head"): lens.layer_head_vector_patch_setter,
    ("layer", "position", "head"): lens.layer_pos_head_vector_patch_setter,
}


def paths(
    params: Params,
    config: Config,
    clean: Any,
    corrupted: Any,
    device: Device,
    *,
    metric: Callable[[Tensor], Tensor],
) -> Callable[[], Tensor]:
    """Return a call that patches every path from a head to the queries of a later head, and computes the metric.

    Both caches are computed before.
    """
    model = build(params, config, device)
    batches = [ids(tokens, device) for tokens in (clean, corrupted)]
    with torch.inference_mode():
        clean_cache, cache = (model.run_with_cache(tokens)[1] for tokens in batches)

    def call() -> Tensor:
        with torch.inference_mode():
            return lens.get_act_patch_direct_path_all_sources(
                model, batches[1], clean_cache, cache, metric, component="q", verbose=False
            )

    return waited(call, device)


def attribution(
    params: Params,
    config: Config,
    clean: Any,
    corrupted: Any,
    device: Device,
    *,
    metric: Callable[[Tensor], Tensor],
) -> Callable[[], Tensor]:
    """Return a call that computes all attributions in one vector: heads [l n t], the embedding [t], MLPs [l t]."""
    model = build(params, config, device)
    batches = [ids(tokens, device) for tokens in (clean, corrupted)]
    kinds = ("attn_head_out", "embed", "mlp_out")

    def order(node: Any) -> tuple[int, ...]:
        return kinds.index(node.kind), node.layer or 0, node.head or 0, node.position

    def call() -> Tensor:
        scores = attribution_patch(model, batches[0], batches[1], metric).node_scores
        return torch.tensor([scores[node] for node in sorted(scores, key=order)])

    return waited(call, device)


def ids(tokens: Any, device: Device) -> Tensor:
    """Return token ids [b t] as a tensor."""
    return tensor(tokens).long().to(place(device))
