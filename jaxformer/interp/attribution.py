"""Gradients of a metric at every site at once, and attribution patching: activation patching to first order."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxformer.checks import positive_integer
from jaxformer.config import Compute, Config
from jaxformer.edits import Watched, is_data
from jaxformer.interp.engine.axes import axes_by
from jaxformer.interp.engine.perturb import perturbed, site_shapes
from jaxformer.interp.metric import Metric, check_alike, scalar
from jaxformer.model.checks import check_params
from jaxformer.model.params import Params
from jaxformer.model.stream import accumulation_dtype
from jaxformer.model.transformer import forward
from jaxformer.sites import Edit, Layer, identity


class Gradients(NamedTuple):
    """A metric, the values of some sites, and the metric's gradients at these sites; layers are stacked in front."""

    value: Float[Array, ""]
    activations: dict[str, Array]
    gradients: dict[str, Array]


def gradients(
    params: Params,
    config: Config,
    tokens: Int[Array, " t"],
    metric: Metric,
    sites: Iterable[str],
    *,
    logits_at: Int[Array, " r"] | None = None,
    edit: Edit = identity,
    compute: Compute = Compute(),
) -> Gradients:
    """Return the gradients of a metric with respect to the values of some sites, from one backward pass.

    A gradient is the total derivative, through everything that reads the value later. The heads of a layer are summed,
    so the gradient of head_out is the same for all heads, and equals that of attn_out unless a norm follows attention.

    Args:
        params: as `init` returns them, with stacked layers.
        tokens: one sequence; `jax.vmap` over tokens gives a batch, with a metric for each sequence.
        metric: maps logits [t v] to a scalar, for example the difference of two of them.
        sites: names of sites, such as ("embed", "z", "mlp_out").
        logits_at: the positions whose logits the metric gets, as in `forward`; fewer positions cost less.
        edit: as in `forward`; gradients are those of the edited values.

    Raises:
        ValueError: as `forward`; a metric that does not return one float.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = gradients(params, config, jnp.array([3, 1, 4]), lambda logits: logits[-1, 2], ("z",))
    >>> out.value.shape, out.gradients["z"].shape
    ((), (2, 3, 2, 4))
    """
    check_params(params, config)
    tokens = jnp.asarray(tokens)
    sites = sites if isinstance(sites, str) else tuple(sites)
    logits_at = None if logits_at is None else jnp.asarray(logits_at)
    options: Any = {"edit": edit, "logits_at": logits_at, "compute": compute}
    shapes = site_shapes(params, config, tokens, sites, **options)

    def run(changes: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        out = perturbed(params, config, tokens, changes, capture=sites, **options)
        return scalar(metric, out.logits), out.activations

    zeros = {site: jnp.zeros(shape.shape, shape.dtype) for site, shape in shapes.items()}
    (value, activations), grads = jax.value_and_grad(run, has_aux=True)(zeros)
    return Gradients(value, activations, grads)


def attribution_patch(
    params: Params,
    config: Config,
    clean: Int[Array, " t"],
    corrupted: Int[Array, "_"],  # check_pair refuses another length with a clear message
    metric: Metric,
    sites: Iterable[str],
    *,
    steps: int = 1,
    by: Iterable[str] | None = None,
    logits_at: Int[Array, " r"] | None = None,
    edit: Edit = identity,
    compute: Compute = Compute(),
) -> dict[str, Array]:
    """Estimate the effect on the metric of patching clean values into the corrupted run, to first order.

    The result is (clean - corrupted) · gradient for every coordinate of every site, from two forward passes and one
    backward pass. It estimates metric(patched) - metric(corrupted). The estimate for several coordinates is their sum;
    `by` sums over axes.

    For heads, use the site z: its sum over the head width equals the sum of head_out over the stream, and needs no
    [t n d] array.

    If all tokens are equal in both runs, the result is exactly zero, without rounding differences of the two passes.

    Args:
        params: as `init` returns them, with stacked layers.
        clean: tokens of the run to patch from; `jax.vmap` over both gives a batch.
        corrupted: tokens of the run to patch, of the same length.
        metric: as in `gradients`.
        sites: names of sites.
        steps: 1: use the gradient at the corrupted run. More: integrated gradients, the mean gradient at the midpoints
            of this many segments of the line between the embeddings of the two runs. They see past a softmax or
            neuron that is saturated at the corrupted run; the cost grows with steps.
        by: axes to keep, as in `summed`; None: every coordinate, in the layout of forward's activations.
        logits_at: as in `forward`.
        edit: as in `forward`, in both runs.

    Raises:
        ValueError: as `gradients`; clean and corrupted of different lengths; steps below 1; an axis that a site lacks.

    Source: Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; steps: Sundararajan
    et al. 2017, "Axiomatic Attribution for Deep Networks", §3 and §5; Hanna et al. 2024, "Have Faith in
    Faithfulness", §3.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> scores = attribution_patch(params, config, jnp.array([3, 1, 4]), jnp.array([2, 1, 4]),
    ...     lambda logits: logits[-1, 2], ("z",), by=("layer", "head"))
    >>> scores["z"].shape
    (2, 2)
    """
    check_params(params, config)
    clean, corrupted = jnp.asarray(clean), jnp.asarray(corrupted)
    check_pair(clean, corrupted, steps)
    sites = sites if isinstance(sites, str) else tuple(sites)
    by = by if by is None or isinstance(by, str) else tuple(by)
    options: Any = {"edit": edit, "compute": compute, "logits_at": logits_at}
    site_shapes(params, config, clean, sites, **options)
    if by is not None:
        _ = [axes_by(site, by) for site in sites]
    if steps == 1:
        _, base, grads = gradients(params, config, corrupted, metric, sites, **options)
    else:
        base = forward(params, config, corrupted, capture=sites, **options).activations
        grads = along_line(
            params, config, clean, corrupted, steps, edit,
            lambda edit: gradients(
                params, config, corrupted, metric, sites, **(options | {"edit": edit})
            ).gradients,
        )  # fmt: skip
    target = forward(params, config, clean, capture=sites, **options).activations
    change = difference(clean, corrupted, target, base)
    scores = jax.tree.map(jnp.multiply, change, grads)
    return scores if by is None else summed(scores, by)


def summed(scores: Mapping[str, Shaped[Array, "..."]], by: Iterable[str]) -> dict[str, Array]:
    """Sum scores over every axis that is not named; the result has the named axes in the order of `by`.

    Args:
        scores: by site, in the layout of forward's activations.
        by: any of layer, position, head, source, neuron.

    Raises:
        ValueError: an unknown axis, one named twice, or one that a site lacks.

    >>> summed({"z": jnp.ones((2, 5, 3, 4))}, by=("head", "layer"))["z"].shape
    (3, 2)
    """
    by = by if isinstance(by, str) else tuple(by)
    kept = {site: axes_by(site, by) for site in scores}
    return {
        site: jnp.einsum(values, list(range(values.ndim)), kept[site])
        for site, values in scores.items()
    }


def difference(
    clean: Int[Array, " t"], corrupted: Int[Array, " t"], target: Any, base: Any
) -> dict[str, Array]:
    """Return target - base for the values of two runs; exactly zero if all tokens are equal, or if both are -inf."""
    differs = (clean != corrupted).any()

    def subtract(target: Array, base: Array) -> Array:
        return jnp.where(differs & (target != base), target - base, jnp.zeros_like(target))

    return jax.tree.map(subtract, target, base)


def along_line(
    params: Params,
    config: Config,
    clean: Int[Array, " t"],
    corrupted: Int[Array, " t"],
    steps: int,
    edit: Edit,
    function: Callable[[Edit], Any],
) -> Any:
    """Return the mean of function(edit) at the midpoints of `steps` segments from corrupted to clean embeddings.

    The sum is in float32 or wider: a narrow sum of many terms would lose the later ones.
    """
    edited: Any = edit if is_data(edit) else Watched(edit)
    start, end = (
        forward(params, config, tokens, capture=("embed",), edit=edited).activations["embed"]
        for tokens in (corrupted, clean)
    )

    def at(fraction: Array) -> Any:
        def interpolate(site: str, layer: Layer, value: Array) -> Array:
            if site == "embed":
                point = start + fraction * (end - start).astype(fraction.dtype)
                return point.astype(start.dtype)
            return edited(site, layer, value)

        return function(interpolate)

    def add(total: Any, fraction: Array) -> tuple[Any, None]:
        new = at(fraction)
        return jax.tree.map(lambda total, new: total + new.astype(total.dtype), total, new), None

    fractions = (jnp.arange(steps, dtype=accumulation_dtype(start.dtype)) + 0.5) / steps
    shapes = jax.eval_shape(at, fractions[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, accumulation_dtype(s.dtype)), shapes)
    total, _ = jax.lax.scan(add, zeros, fractions)
    return jax.tree.map(lambda total, s: (total / steps).astype(s.dtype), total, shapes)


def check_pair(clean: Int[Array, "..."], corrupted: Int[Array, "..."], steps: Any) -> None:
    """Refuse two runs of different shapes, and wrong steps.

    Raises:
        ValueError: clean and corrupted of different shapes; steps that are not an integer, or below 1.
    """
    check_alike(clean, corrupted)
    positive_integer("steps", steps)
