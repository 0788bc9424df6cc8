"""What TransformerLens finds in one tiny GPT-2: from a golden file, or from the installed library.

`python -m tests.helpers.lens` rewrites the golden file. Every quantity is an array in our layout: layers in front,
then heads, then positions.
"""
# pyright: reportMissingImports=false

import importlib.metadata
import importlib.util
import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from jaxformer import Config, Params
from jaxformer.model.params import Norm
from tests.helpers.models import random_params

GOLDEN = Path(__file__).parents[1] / "golden" / "lens.npz"
VERSIONS = ("transformer-lens", "transformers", "torch")
INSTALLED = importlib.util.find_spec("transformer_lens") is not None

CONFIG = Config(
    n_layers=3, d_model=16, n_heads=4, d_head=4, d_mlp=24, n_vocab=29, position="learned", n_context=16,
    norm="layer", activation="gelu_tanh", bias="all", tied=True,
)  # fmt: skip
CLEAN = np.array([3, 7, 3, 20, 3, 7], np.int32)
CORRUPTED = np.array([3, 9, 14, 20, 2, 7], np.int32)
"""Of one length; tokens recur, for the heads that look for that."""
RIGHT, WRONG = 5, 17
"""The metric is the difference of their logits at the last position."""

SITES = {
    "attn_scale": "ln1.hook_scale", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v",
    "scores": "attn.hook_attn_scores", "pattern": "attn.hook_pattern", "z": "attn.hook_z",
    "head_out": "attn.hook_result", "attn_out": "hook_attn_out", "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid", "mlp_scale": "ln2.hook_scale", "pre": "mlp.hook_pre",
    "post": "mlp.hook_post", "mlp_out": "hook_mlp_out", "resid_post": "hook_resid_post",
}  # fmt: skip
"""Our sites that belong to a layer, by its names."""
WHOLE = {
    "embed": "hook_embed", "pos_embed": "hook_pos_embed", "final_scale": "ln_final.hook_scale",
    "final": "ln_final.hook_out",
}  # fmt: skip
STREAM = ("resid_pre", "resid_mid", "attn_out", "mlp_out")
BY_HEAD = ("q", "k", "v", "z")
FOLDED = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "b_in", "W_out", "b_out",
          "W_E", "W_pos", "W_U", "b_U")  # fmt: skip
HEADS = ("previous_token", "duplicate_token", "induction")


def parameters() -> Params:
    """Of the tiny model: nothing is zero or one, and heads differ enough for every patch to matter."""

    def shifted(part: Any) -> Any:
        if isinstance(part, Norm):
            weight, bias = jax.tree.leaves(part)
            return Norm(weight + 0.9, bias - 0.1)
        return part - 0.1

    return jax.tree.map(shifted, random_params(CONFIG), is_leaf=lambda part: isinstance(part, Norm))


def golden() -> dict[str, np.ndarray]:
    """Every quantity, as it was when the golden file was written."""
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files if name not in VERSIONS}


def live() -> dict[str, np.ndarray]:
    """Every quantity, from the installed TransformerLens."""
    import torch

    from benchmarks.peers.lens import build

    new = partial(build, parameters(), CONFIG, jax.devices("cpu")[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products of this size are slower on more
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # its progress bars
        warnings.simplefilter("ignore")
        model = new()
        tokens = [torch.from_numpy(ids).long()[None] for ids in (CLEAN, CORRUPTED)]
        found = attributed(model, *tokens)
        with torch.no_grad():
            cache, other = (run(model, one) for one in tokens)
            found |= captured(model, tokens[0], cache) | decomposed(cache) | circuits(model)
            found |= headed(model, tokens[0])
            found |= swept(model, tokens[1], cache) | paths(model, tokens[1], cache, other)
            found |= {"metric/corrupted": metric(model(tokens[1]))}
            found |= attributions_to_logits(new(), tokens[0]) | folded(new(), tokens[0])
    torch.set_num_threads(threads)
    return {name: np.asarray(value) for name, value in found.items()}


def run(model: Any, tokens: Any) -> Any:
    """Its cache of one sequence, heads' outputs included."""
    model.set_use_attn_result(True)
    cache = model.run_with_cache(tokens)[1]
    model.set_use_attn_result(False)
    return cache


def metric(logits: Any) -> Any:
    """[b t v] -> a number, in its library or in ours."""
    return logits[0, -1, RIGHT] - logits[0, -1, WRONG]


def captured(model: Any, tokens: Any, cache: Any) -> dict[str, Any]:
    """Each site's value."""
    found = {f"site/{ours}": cache[theirs][0] for ours, theirs in WHOLE.items()}
    for ours, theirs in SITES.items():
        layers = [cache[f"blocks.{layer}.{theirs}"][0] for layer in range(CONFIG.n_layers)]
        found[f"site/{ours}"] = np.stack(layers)
    return found | {"site/logits": model(tokens)[0]}


def decomposed(cache: Any) -> dict[str, Any]:
    """The stream in parts, and read at each layer."""
    neurons = [cache.get_neuron_results(layer)[0, -1] for layer in range(CONFIG.n_layers)]
    return {
        "decompose_resid": cache.decompose_resid()[:, 0],
        "decompose_resid/mlp_input_1": cache.decompose_resid(layer=1, mlp_input=True)[:, 0],
        "accumulated_resid": cache.accumulated_resid(incl_mid=True)[:, 0],
        "stack_head_results": cache.stack_head_results()[:, 0],
        "neuron_results/last": np.stack(neurons),
        "logit_lens": cache.logit_lens(positions=None).values[:, 0],
    }


def attributions_to_logits(model: Any, tokens: Any) -> dict[str, Any]:
    """Its direct logit attribution asks for folded norms, so that W_U holds the final one's weight."""
    model.enable_compatibility_mode(
        disable_warnings=True, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    cache = run(model, tokens)
    parts = {"components": cache.decompose_resid(), "heads": cache.stack_head_results()}
    return {
        f"logit_attrs/{name}": cache.logit_attrs(part, RIGHT, WRONG)[:, 0]
        for name, part in parts.items()
    }


def folded(model: Any, tokens: Any) -> dict[str, Any]:
    """The model after all its default folds: what it computes, and the matrices, our axes first."""
    model.enable_compatibility_mode(disable_warnings=True)
    found = {f"folded/{name}": getattr(model, name).detach().numpy() for name in FOLDED}
    for name in ("W_Q", "W_K", "W_V"):
        found[f"folded/{name}"] = found[f"folded/{name}"].swapaxes(1, 2)  # to [l d n h]
    return found | {"folded/log_probs": model(tokens)[0].log_softmax(-1)}


def swept(model: Any, corrupted: Any, clean: Any) -> dict[str, Any]:
    """Activation patching, one cell at a time."""
    from transformer_lens import patching

    def sweep(name: str) -> np.ndarray:
        return getattr(patching, f"get_act_patch_{name}")(model, corrupted, clean, metric).numpy()

    found = {f"sweep/{site}": sweep(site) for site in STREAM}
    for site in BY_HEAD:
        theirs = "out" if site == "z" else site
        found[f"sweep/{site}/heads"] = sweep(f"attn_head_{theirs}_all_pos")
        by_position = sweep(f"attn_head_{theirs}_by_pos")
        found[f"sweep/{site}/positions"] = by_position.swapaxes(1, 2)  # to [l n t]
    names = {"heads": "all_pos", "positions": "by_pos", "sources": "dest_src_pos"}
    for ours, theirs in names.items():
        found[f"sweep/pattern/{ours}"] = sweep(f"attn_head_pattern_{theirs}")
    return found


def paths(model: Any, corrupted: Any, clean: Any, other: Any) -> dict[str, Any]:
    """Path patching from every head to every later head; 0 where the receiver is not later."""
    from transformer_lens.patching import get_act_patch_direct_path_all_sources as every_path

    call: Any = partial(every_path, model, corrupted, clean, other, metric, verbose=False)
    return {f"path/{kind}": call(component=kind) for kind in "qkv"}


def circuits(model: Any) -> dict[str, Any]:
    """Composition scores, and the spectra of the heads' QK and OV circuits."""
    found = {
        f"composition/{kind}": model.all_composition_scores(kind.upper()).scores for kind in "qkv"
    }
    for name in ("QK", "OV"):
        circuit = getattr(model, name)
        found[f"{name}/singular_values"] = circuit.svd()[1]
        found[f"{name}/eigenvalues"] = circuit.eigenvalues
    return found


def headed(model: Any, tokens: Any) -> dict[str, Any]:
    """How much of each head's attention goes where a head of that name looks."""
    from transformer_lens.head_detector import detect_head

    # The detector asks a model for its tokenizer; this one has none.
    stand_in: Any = SimpleNamespace(cfg=model.cfg, to_tokens=lambda _: tokens)
    alone = run(model, tokens).remove_batch_dim()
    detect: Any = partial(detect_head, stand_in, "", cache=alone)
    return {f"heads/{name}": detect(detection_pattern=f"{name}_head") for name in HEADS}


def attributed(model: Any, clean: Any, corrupted: Any) -> dict[str, Any]:
    """Attribution patching: of the embedding [t], heads [l n t], MLPs [l t]; of edges, over all t."""
    from transformer_lens.tools.analysis import attribution_patching as ap

    score: Callable[..., Any] = partial(ap.attribution_patch, model, clean, corrupted, metric)
    length = len(CLEAN)
    found = {
        "attribution/embed": np.zeros(length),
        "attribution/z": np.zeros((CONFIG.n_layers, CONFIG.n_heads, length)),
        "attribution/mlp_out": np.zeros((CONFIG.n_layers, length)),
    }
    for node, value in score(ap.EdgeAttributionConfig(granularity="node")).node_scores.items():
        place = tuple(i for i in (node.layer, node.head, node.position) if i is not None)
        site = {"attn_head_out": "z"}.get(node.kind, node.kind)
        found[f"attribution/{site}"][place] = value
    rows, columns = senders(), receivers()
    edges = np.zeros((len(rows), len(columns)))
    scores = score(ap.EdgeAttributionConfig(granularity="edge")).edge_scores
    for (writer, reader), value in scores.items():
        edges[rows.index(end(writer)), columns.index(end(reader))] += value
    return found | {"edges": edges}


def end(node: Any) -> tuple[Any, ...]:
    """An end of an edge, wherever in the text."""
    return (node.kind,) if node.kind == "logits" else (node.kind, node.layer, node.head)


def senders() -> list[tuple[Any, ...]]:
    """The rows of edges: the embedding, then each layer's heads and its MLP."""
    found: list[tuple[Any, ...]] = [("embed", None, None)]
    for layer in range(CONFIG.n_layers):
        found += [("attn_head_out", layer, head) for head in range(CONFIG.n_heads)]
        found.append(("mlp_out", layer, None))
    return found


def receivers() -> list[tuple[Any, ...]]:
    """The columns: each layer's q, k and v, head by head, then its MLP; last the unembedding."""
    found: list[tuple[Any, ...]] = []
    for layer in range(CONFIG.n_layers):
        for kind in "qkv":
            found += [(f"{kind}_input", layer, head) for head in range(CONFIG.n_heads)]
        found.append(("mlp_in", layer, None))
    return [*found, ("logits",)]


def write() -> None:
    """The golden file, with the versions that it came from."""
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    found = {
        name: a.astype(np.complex64 if np.iscomplexobj(a) else np.float32)
        for name, a in live().items()
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    every: Any = found | versions  # savez takes names for options of its own
    np.savez_compressed(GOLDEN, **every)
    print(f"{GOLDEN}: {len(found)} quantities, {GOLDEN.stat().st_size / 1e3:.0f} kB, {versions}")


if __name__ == "__main__":
    write()
