"""What TransformerLens finds in a tiny GPT-2, we find: from a golden file, and live where it is installed.

The table below says which of our calls is which of its quantities; `tests.helpers.lens` says how it gets them.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import forward
from jaxformer.interp import attribution, circuits, decompose, edges, fold, heads, patching, paths
from jaxformer.interp.lens import direct_logit_attribution, logit_lens
from jaxformer.model.sites import shown
from tests.helpers import lens
from tests.helpers.lens import CONFIG, RIGHT, WRONG

CLEAN, CORRUPTED = jnp.asarray(lens.CLEAN), jnp.asarray(lens.CORRUPTED)
LAST = jnp.array([-1])
TOLERANCE = 1e-4
"""Of float32, relative to the largest value of a quantity."""


@lru_cache
def params() -> Any:
    return lens.parameters()


@lru_cache
def activations() -> dict[str, jax.Array]:
    capture = shown(CONFIG)
    return jax.jit(partial(forward, capture=capture))(params(), CONFIG, CLEAN).activations


def metric(logits: jax.Array) -> jax.Array:
    """The difference of two logits at the last place that was read."""
    return logits[-1, RIGHT] - logits[-1, WRONG]


def sweep(site: str, *by: str) -> Callable[[], Any]:
    """What patching each part changes: the metric itself would hide small changes behind its size."""

    def run() -> Any:
        runs = params(), CONFIG, CLEAN, CORRUPTED
        return patching.patch_sweep(*runs, metric, site, by, read=LAST) - unpatched()

    return run


def every_path(kind: str) -> Any:
    found = paths.path_patch(params(), CONFIG, CLEAN, CORRUPTED, metric, kind, read=LAST)
    return jnp.nan_to_num(found - unpatched())


def edge_scores() -> Any:
    def every(params: Any) -> Any:
        return edges.edge_attribution(params, CONFIG, CLEAN, CORRUPTED, metric, read=LAST)

    return jax.jit(every)(params())


@lru_cache
def unpatched() -> jax.Array:
    return metric(forward(params(), CONFIG, CORRUPTED).logits)


@lru_cache
def nodes() -> dict[str, jax.Array]:
    def every(params: Any) -> dict[str, jax.Array]:
        runs, sites = (params, CONFIG, CLEAN, CORRUPTED), ("embed", "z", "mlp_out")
        return attribution.attribution_patch(*runs, metric, sites, read=LAST)

    return jax.jit(every)(params())


def node(site: str, *by: str) -> Any:
    return attribution.summed({site: nodes()[site]}, by)[site]


def parts(name: str, **options: Any) -> Any:
    return getattr(decompose, name)(params(), CONFIG, activations(), **options)


def to_logits(components: Any) -> Any:
    given = params(), CONFIG, activations()
    return direct_logit_attribution(*given, components=components, tokens=RIGHT, minus=WRONG)


def neurons() -> Any:
    every = [parts("neuron_results", layer=layer) for layer in range(CONFIG.n_layers)]
    return jnp.stack(every)[:, :, -1]


def looking(name: str) -> Any:
    """The share of a head's attention on the tokens where a head of that name looks."""
    return heads.head_scores(params(), CONFIG, CLEAN, name)


@lru_cache
def after_folding() -> Any:
    """All of TransformerLens's default folds, in its order."""
    config, folded = fold.foldable(params(), CONFIG)
    for step in (fold.fold_norm, fold.center_writing, fold.center_unembed, fold.fold_value_bias):
        folded = step(folded, config)
    return config, folded


def folded(name: str) -> Any:
    config, found = after_folding()
    if name == "log_probs":
        return jax.nn.log_softmax(forward(found, config, CLEAN).logits)
    rooms = (found, found.blocks.attn, found.blocks.mlp)
    return next(getattr(room, name) for room in rooms if hasattr(room, name))


HEADS, POSITIONS = ("layer", "head"), ("layer", "head", "position")
OURS: dict[str, Callable[[], Any]] = {
    **{f"site/{site}": lambda site=site: activations()[site] for site in lens.SITES | lens.WHOLE},
    "site/logits": lambda: activations()["logits"],
    "decompose_resid": lambda: parts("decompose_resid"),
    "decompose_resid/mlp_input_1": lambda: parts("decompose_resid", layer=1, mlp_input=True),
    "accumulated_resid": lambda: parts("accumulated_resid", incl_mid=True),
    "stack_head_results": lambda: parts("head_results"),
    "neuron_results/last": neurons,
    "logit_lens": lambda: logit_lens(params(), CONFIG, parts("accumulated_resid")),
    "logit_attrs/components": lambda: to_logits(parts("decompose_resid")),
    "logit_attrs/heads": lambda: to_logits(parts("head_results")),
    **{f"sweep/{s}": sweep(s, "layer", "position") for s in lens.STREAM},
    **{f"sweep/{s}/heads": sweep(s, *HEADS) for s in lens.BY_HEAD},
    **{f"sweep/{s}/positions": sweep(s, *POSITIONS) for s in lens.BY_HEAD},
    "sweep/pattern/heads": sweep("pattern", *HEADS),
    "sweep/pattern/positions": sweep("pattern", *POSITIONS),
    "sweep/pattern/sources": sweep("pattern", *POSITIONS, "source"),
    **{f"path/{kind}": partial(every_path, kind) for kind in "qkv"},
    **{
        f"composition/{kind}": lambda kind=kind: circuits.composition_scores(params(), CONFIG, kind)
        for kind in "qkv"
    },
    "QK/singular_values": lambda: circuits.qk_circuit(params(), CONFIG).svd().S,
    "OV/singular_values": lambda: circuits.ov_circuit(params(), CONFIG).svd().S,
    "QK/eigenvalues": lambda: circuits.qk_circuit(params(), CONFIG).eigenvalues,
    "OV/eigenvalues": lambda: circuits.ov_circuit(params(), CONFIG).eigenvalues,
    **{f"heads/{name}": partial(looking, name) for name in lens.HEADS},
    "attribution/embed": lambda: node("embed", "position"),
    "attribution/z": lambda: node("z", *POSITIONS),
    "attribution/mlp_out": lambda: node("mlp_out", "layer", "position"),
    "edges": edge_scores,
    **{f"folded/{name}": partial(folded, name) for name in (*lens.FOLDED, "log_probs")},
}
"""Our call for each quantity. A sweep's and a path's are what it changes."""


def expected(theirs: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Its quantity as ours is given."""
    value = theirs[name]
    if name.startswith("path/"):
        later = np.tri(CONFIG.n_layers, k=-1, dtype=bool).T[:, None, :, None]
        return np.where(later, value - theirs["metric/corrupted"], 0.0)
    return value - theirs["metric/corrupted"] if name.startswith("sweep/") else value


def check(theirs: dict[str, np.ndarray], name: str) -> None:
    """Ours is theirs, within float32's rounding."""
    value, ours = expected(theirs, name), np.asarray(OURS[name]())
    assert ours.shape == value.shape, name
    if name == "site/scores":  # each has its own most negative number where a token may not look
        seen = np.tri(len(CLEAN), dtype=bool)
        value, ours = (np.where(seen, scores, 0.0) for scores in (value, ours))
    if name.endswith("eigenvalues"):  # in no order
        value, ours = nearest(value, ours), value
    assert (value != 0).any() or name == "folded/b_V", f"{name} is zero: a test that could not fail"
    bound = TOLERANCE * max(np.abs(value).max(), np.abs(ours).max())
    assert np.abs(ours - value).max() <= bound, name


def nearest(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """Ours, each paired with the nearest of theirs that is not taken yet."""
    paired = np.empty_like(theirs)
    for place in np.ndindex(theirs.shape[:-1]):
        left = list(ours[place])
        for i, value in enumerate(theirs[place]):
            paired[(*place, i)] = left.pop(int(np.argmin(np.abs(np.array(left) - value))))
    return paired


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return lens.golden()


def is_slow(name: str) -> bool:
    """Whole sweeps, but for one of each kind."""
    return name.startswith(("sweep/", "path/")) and name not in ("sweep/z/heads", "path/v")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if is_slow(n) else n for n in OURS]
)
def test_we_find_what_transformer_lens_found(name: str, golden: dict[str, np.ndarray]):
    check(golden, name)


def test_every_quantity_of_the_golden_file_is_compared(golden: dict[str, np.ndarray]):
    assert golden.keys() - {"metric/corrupted"} == OURS.keys()
    assert lens.GOLDEN.stat().st_size < 300_000


@pytest.mark.peers
@pytest.mark.skipif(
    not lens.INSTALLED, reason="TransformerLens is not installed: pip install -e '.[lens]'"
)
def test_we_find_what_the_installed_transformer_lens_finds():
    theirs = lens.live()
    assert theirs.keys() == lens.golden().keys()
    for name in OURS:
        check(theirs, name)
