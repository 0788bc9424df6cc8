"""Which parts of a pass matter to a metric, to first order: gradients at every site at once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxformer.checks import positive_integer
from jaxformer.config import Compute, Config
from jaxformer.interp.engine.parts import axes_by
from jaxformer.interp.jacobian import perturbed, site_shapes
from jaxformer.interp.metric import Metric, check_alike, scalar
from jaxformer.model.params import Params
from jaxformer.model.sites import Edit, Layer, Site, keep
from jaxformer.model.stream import wide
from jaxformer.model.transformer import forward


class Gradients(NamedTuple):
    """The metric, the sites' values, and its derivative by each; layers stacked in front."""

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
    read: Int[Array, " r"] | None = None,
    edit: Edit = keep,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Gradients:
    """The gradient of a metric of the logits with respect to every site, in one backward pass.

    A site's gradient is the total one: through everything that reads it later. All of a layer's heads
    write to one sum, so that the gradient of head_out is the same for each of them, and that of attn_out where no
    norm is between the two.

    Args:
        params: as `init` gives them, with stacked layers.
        tokens: one sequence; `jax.vmap` over tokens gives a batch, each with its own metric's value.
        metric: maps logits [t v] to a scalar, for example a difference of two of them.
        sites: names of sites, such as ("embed", "z", "mlp_out").
        read: as in `forward`: the metric then sees those places alone, and the other logits cost nothing.
        edit: as in `forward`; a gradient is that of the edited value.

    Raises:
        ValueError: as `forward`; a metric that is not one float.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = gradients(params, config, jnp.array([3, 1, 4]), lambda logits: logits[-1, 2], ("z",))
    >>> out.value.shape, out.gradients["z"].shape
    ((), (2, 3, 2, 4))
    """
    tokens = jnp.asarray(tokens)
    sites = sites if isinstance(sites, str) else tuple(sites)
    read = None if read is None else jnp.asarray(read)
    options: Any = {"edit": edit, "read": read, "compute": compute}
    shapes = site_shapes(params, config, tokens, sites, **options)

    def run(changes: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        out = perturbed(params, config, tokens, changes, capture=sites, **options)
        return scalar(metric, out.logits), out.activations

    still = {site: jnp.zeros(shape.shape, shape.dtype) for site, shape in shapes.items()}
    (value, activations), slopes = jax.value_and_grad(run, has_aux=True)(still)
    return Gradients(value, activations, slopes)


def attribution_patch(
    params: Params,
    config: Config,
    clean: Int[Array, " t"],
    corrupted: Int[Array, "_"],  # as many, which check_pair says in a sentence
    metric: Metric,
    sites: Iterable[str],
    *,
    steps: int = 1,
    by: Iterable[str] | None = None,
    read: Int[Array, " r"] | None = None,
    edit: Edit = keep,
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> dict[str, Array]:
    """What patching each node's clean value into the corrupted run would do to the metric, to first order.

    (clean - corrupted) · gradient, coordinate by coordinate: an estimate of metric(patched) - metric(corrupted)
    for every node at once, from two passes forward and one back. Sums over coordinates are the estimates for
    larger nodes; `by` takes them.

    For heads, ask for z: summed over its width it is what head_out gives summed over the stream, because the
    gradient of z is that of head_out read through W_O, and no head's own stream-wide update is formed.

    Where every token is the same in both runs, all is exactly zero: what two programs round differently is
    left out.

    Args:
        params: as `init` gives them, with stacked layers.
        clean: the tokens whose values are patched in; `jax.vmap` over both gives a batch.
        corrupted: as many tokens, into whose run they are patched.
        metric: as in `gradients`.
        sites: names of sites.
        steps: 1: the gradient at the corrupted run. More: integrated gradients, that is the mean of the
            gradients at the middles of so many pieces of the straight line between the two runs' embeddings.
            It sees past a softmax or a neuron that is saturated at the corrupted run, at that many times the cost.
        by: axes to keep, as in `summed`; None: every coordinate, laid out as forward's activations.
        read: as in `forward`.
        edit: as in `forward`, in both runs.

    Raises:
        ValueError: as `gradients`; clean and corrupted of different lengths; steps below 1; an axis that a
            site lacks.

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
    clean, corrupted = jnp.asarray(clean), jnp.asarray(corrupted)
    check_pair(clean, corrupted, steps)
    sites = sites if isinstance(sites, str) else tuple(sites)
    by = by if by is None or isinstance(by, str) else tuple(by)
    options: Any = {"edit": edit, "compute": compute, "read": read}
    site_shapes(params, config, clean, sites, **options)
    if by is not None:
        _ = [axes_by(site, by) for site in sites]
    if steps == 1:
        _, base, slopes = gradients(params, config, corrupted, metric, sites, **options)
    else:
        base = forward(params, config, corrupted, capture=sites, **options).activations
        slopes = along_line(
            params, config, clean, corrupted, steps, edit,
            lambda edit: gradients(
                params, config, corrupted, metric, sites, **(options | {"edit": edit})
            ).gradients,
        )  # fmt: skip
    goal = forward(params, config, clean, capture=sites, **options).activations
    moved = difference(clean, corrupted, goal, base)
    scores = jax.tree.map(jnp.multiply, moved, slopes)
    return scores if by is None else summed(scores, by)


def summed(scores: Mapping[str, Shaped[Array, "..."]], by: Iterable[str]) -> dict[str, Array]:
    """Scores laid out as forward's activations, summed over every axis but those named, in that order.

    Args:
        scores: by site.
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
    clean: Int[Array, " t"], corrupted: Int[Array, " t"], goal: Any, base: Any
) -> dict[str, Array]:
    """The difference of two runs' values: exactly zero where all tokens are the same, or both are -inf."""
    differs = (clean != corrupted).any()

    def minus(goal: Array, base: Array) -> Array:
        return jnp.where(differs & (goal != base), goal - base, jnp.zeros_like(goal))

    return jax.tree.map(minus, goal, base)


def along_line(
    params: Params,
    config: Config,
    clean: Int[Array, " t"],
    corrupted: Int[Array, " t"],
    steps: int,
    edit: Edit,
    slope: Callable[[Edit], Any],
) -> Any:
    """The mean of slope(edit) over the middles of so many pieces of the line from corrupted to clean embeddings.

    Summed in float32 or wider: a narrow sum would leave out the later ones of many pieces.
    """
    start, end = (
        forward(params, config, tokens, capture=("embed",), edit=edit).activations["embed"]
        for tokens in (corrupted, clean)
    )

    def at(part: Array) -> Any:
        def mixed(site: Site, layer: Layer, value: Array) -> Array:
            if site == "embed":
                mixed = start + part * (end - start).astype(part.dtype)
                return mixed.astype(start.dtype)
            return edit(site, layer, value)

        return slope(mixed)

    def add(total: Any, part: Array) -> tuple[Any, None]:
        return jax.tree.map(
            lambda total, new: total + new.astype(total.dtype), total, at(part)
        ), None

    parts = (jnp.arange(steps, dtype=wide(start.dtype)) + 0.5) / steps
    each = jax.eval_shape(at, parts[0])
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, wide(s.dtype)), each)
    total, _ = jax.lax.scan(add, nothing, parts)
    return jax.tree.map(lambda total, s: (total / steps).astype(s.dtype), total, each)


def check_pair(clean: Int[Array, "..."], corrupted: Int[Array, "..."], steps: Any) -> None:
    """Refuse two runs that no patch can join.

    Raises:
        ValueError: clean and corrupted of different shapes; steps that are no whole number, or below 1.
    """
    check_alike(clean, corrupted)
    positive_integer("steps", steps)
