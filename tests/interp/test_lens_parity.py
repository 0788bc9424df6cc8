"""Parity with TransformerLens on a tiny GPT-2: compared with a golden file, and with the library if it is installed.

The table below has the call for each of its quantities; `tests.helpers.lens` computes them with TransformerLens.
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
from jaxformer.sites import available_sites
from tests.helpers import lens
from tests.helpers.lens import CONFIG, RIGHT, WRONG

CLEAN, CORRUPTED = jnp.asarray(lens.CLEAN), jnp.asarray(lens.CORRUPTED)
LAST = jnp.array([-1])
TOLERANCE = 1e-4
"""Relative to the largest value of a quantity, in float32."""


@lru_cache
def params() -> Any:
    return lens.parameters()


@lru_cache
def activations() -> dict[str, jax.Array]:
    capture = available_sites(CONFIG)
    return jax.jit(partial(forward, capture=capture))(params(), CONFIG, CLEAN).activations


def metric(logits: jax.Array) -> jax.Array:
    """Return the difference of two logits at the last position of logits_at."""
    return logits[-1, RIGHT] - logits[-1, WRONG]


def sweep(site: str, *by: str) -> Callable[[], Any]:
    """Return the change of the metric by each patch; a tolerance for the metric itself would hide small changes."""

    def run() -> Any:
        runs = params(), CONFIG, CLEAN, CORRUPTED
        return patching.patch_sweep(*runs, metric, site, by, logits_at=LAST) - unpatched()

    return run


def every_path(kind: str) -> Any:
    found = paths.path_patch(params(), CONFIG, CLEAN, CORRUPTED, metric, kind, logits_at=LAST)
    return jnp.nan_to_num(found - unpatched())


def edge_scores() -> Any:
    def every(params: Any) -> Any:
        return edges.edge_attribution(params, CONFIG, CLEAN, CORRUPTED, metric, logits_at=LAST)

    return jax.jit(every)(params())


@lru_cache
def unpatched() -> jax.Array:
    return metric(forward(params(), CONFIG, CORRUPTED).logits)


@lru_cache
def nodes() -> dict[str, jax.Array]:
    def every(params: Any) -> dict[str, jax.Array]:
        runs, sites = (params, CONFIG, CLEAN, CORRUPTED), ("embed", "z", "mlp_out")
        return attribution.attribution_patch(*runs, metric, sites, logits_at=LAST)

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
    """Return the share of each head's attention on the tokens to which a head of that name attends."""
    return heads.head_scores(params(), CONFIG, CLEAN, name)


@lru_cache
def after_folding() -> Any:
    """Apply the default folds of TransformerLens, in its order."""
    folded, config = fold.foldable(params(), CONFIG)
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
CALLS: dict[str, Callable[[], Any]] = {
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
"""The call for each quantity. Those of sweeps and paths return the change of the metric."""


def expected(reference: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return a quantity of TransformerLens in the form that the calls return."""
    value = reference[name]
    if name.startswith("path/"):
        later = np.tri(CONFIG.n_layers, k=-1, dtype=bool).T[:, None, :, None]
        return np.where(later, value - reference["metric/corrupted"], 0.0)
    return value - reference["metric/corrupted"] if name.startswith("sweep/") else value


def check(reference: dict[str, np.ndarray], name: str) -> None:
    """Check that a call returns the value of TransformerLens, within the rounding of float32."""
    value, found = expected(reference, name), np.asarray(CALLS[name]())
    assert found.shape == value.shape, name
    if name == "site/scores":  # the two mark masked scores with different numbers
        seen = np.tri(len(CLEAN), dtype=bool)
        value, found = (np.where(seen, scores, 0.0) for scores in (value, found))
    if name.endswith("eigenvalues"):  # they have no order
        value, found = nearest(value, found), value
    assert (value != 0).any() or name == "folded/b_V", f"{name} is zero: a test that could not fail"
    bound = TOLERANCE * max(np.abs(value).max(), np.abs(found).max())
    assert np.abs(found - value).max() <= bound, name


def nearest(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Reorder the found values: each takes the nearest reference value that is still free."""
    paired = np.empty_like(reference)
    for place in np.ndindex(reference.shape[:-1]):
        left = list(found[place])
        for i, value in enumerate(reference[place]):
            paired[(*place, i)] = left.pop(int(np.argmin(np.abs(np.array(left) - value))))
    return paired


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return lens.golden()


def is_slow(name: str) -> bool:
    """Whether a quantity is a sweep; one of each kind runs in the fast tier."""
    return name.startswith(("sweep/", "path/")) and name not in ("sweep/z/heads", "path/v")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if is_slow(n) else n for n in CALLS]
)
def test_values_equal_those_of_transformer_lens(name: str, golden: dict[str, np.ndarray]):
    check(golden, name)


def test_every_quantity_of_the_golden_file_is_compared(golden: dict[str, np.ndarray]):
    assert golden.keys() - {"metric/corrupted"} == CALLS.keys()
    assert lens.GOLDEN.stat().st_size < 300_000


@pytest.mark.peers
@pytest.mark.skipif(
    not lens.INSTALLED, reason="TransformerLens is not installed: pip install -e '.[lens]'"
)
def test_values_equal_those_of_the_installed_transformer_lens():
    reference = lens.live()
    assert reference.keys() == lens.golden().keys()
    for name in CALLS:
        check(reference, name)
