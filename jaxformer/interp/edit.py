"""Edits as data: what to change, at which site, in which layer; for `forward(edit=...)` and every other `edit=`.

These edits are pytrees whose numbers (layer, indices, values) are traced. So another head or another strength compiles
nothing, an edit can be built inside a vmapped function, and a sweep is one compiled program:
`jax.vmap(lambda s: generate(params, config, prompt, 20, key, edit=steer(4, direction, s)).tokens)(strengths)`.
An edit of a site, layer or index that the model lacks is an error. A traced layer or index that is out of range cannot
be detected and changes nothing.

Positions count from the start of a pass. `generate` runs many passes: one for the prompt (with a window, one for each
of its chunks), then one for each token. An edit of a position is rarely useful there, and one beyond position 0 is
refused, because the pass of a token has only position 0.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Shaped

from jaxformer.edits import BySite, check_numbers
from jaxformer.interp.engine.axes import Index, checked, concrete, python_number
from jaxformer.interp.engine.delta import (
    At,
    Chain,
    acting,
    add,
    of_function,
    of_value,
    put,
    put_own,
)
from jaxformer.sites import MODEL_SITES, Edit


def at(site: str, layer: Any, fn: Callable[[Any], Any]) -> At:
    """Return the edit that replaces a site's value by `fn(value)`.

    Args:
        site: a name in `jaxformer.SITES`.
        layer: index of the layer, which may be traced; None: every layer, or a site that belongs to no layer.
        fn: maps the value of one layer, with the axes of `jaxformer.sites.AXES`. It runs in every layer, and its
            results in other layers are dropped, but its derivative must be finite there too. It is compiled at every
            call. The function of a `jax.tree_util.Partial` is static instead, and its arguments are traced: it must
            not close over what changes, and each new function compiles and keeps a program.

    Raises:
        ValueError: an unknown site, a layer for a site without layers, a layer that is not an integer, an fn that is
            not callable; in the pass, a site or layer that the model lacks.

    >>> double = at("mlp_out", 1, lambda value: 2 * value)
    >>> double.site, double.layer
    ('mlp_out', 1)
    """
    if not callable(fn):
        raise ValueError(f"fn={fn!r} is not a function; to put a value there use patch")
    # Partial(fn) of a Partial would hide its arguments: they would be static.
    data = isinstance(fn, Partial)
    change = Partial(of_value, fn) if data else Partial(of_function, Partial(fn))
    return acting(site, layer, change)


def _number(name: str, value: Any) -> Any:
    """Return numbers as they are, but a Python or NumPy scalar as a float, so that all of them share a program."""
    check_numbers(name, value)
    return python_number(value, float)


def chain(*edits: Edit) -> Chain:
    """Return the edit that applies several edits, one after another.

    >>> len(chain(at("q", 0, abs), at("k", 0, abs)).edits)
    2
    """
    return Chain(tuple(BySite(edit) if isinstance(edit, Mapping) else edit for edit in edits))


def patch(site: str, layer: Any, index: Index | None, value: Any) -> At:
    """Return the edit that replaces part of a site's value by the same part of another value, such as another run's.

    Args:
        layer: as in `at`.
        index: the part, such as {"position": 3, "head": 1}; axes that are not named are replaced in full. None: all.
        value: broadcasts to the value of one layer. Only its part at `index` is used.

    Raises:
        ValueError: as `at`; a name that the site has no axis for; in the pass, an index out of range or a value of
            another shape.

    >>> import jax, jaxformer
    >>> config = jaxformer.Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=0, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> silent = patch("z", 1, {"head": 0}, 0.0)
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1]), edit=silent, capture=("z",))
    >>> bool((out.activations["z"][1, :, 0] == 0).all())
    True
    """
    return acting(site, layer, Partial(put, checked(site, index), _number("value", value)))


def patch_layers(site: str, index: Index | None, values: Shaped[Array, "l ..."]) -> At:
    """Return the edit that patches every layer with its own value: `values` as captured, with layers in front.

    Raises:
        ValueError: as `patch`; a site that belongs to no layer; in the pass, values of another shape.
    """
    if site in MODEL_SITES:
        raise ValueError(f"{site} belongs to no layer; use patch")
    return acting(site, None, Partial(put_own, checked(site, index), values))


def ablate(
    site: str,
    layer: Any = None,
    *,
    head: Any = None,
    neuron: Any = None,
    position: Any = None,
    to: Any = 0.0,
) -> At:
    """Return the edit that ablates part of a site: it sets the value to `to`, 0 by default.

    With zero, the model may get a value that never occurs there. The mean over a distribution of texts keeps what the
    texts have in common.

    Args:
        site: z or head_out for a head, post for a neuron, attn_out or mlp_out for a layer.
        layer: as in `at`.
        head: None: all. At k, v and rot_k it is a key/value head.
        neuron: None: all.
        position: None: all.
        to: for example the mean over many texts; broadcasts to the site's value.

    Raises:
        ValueError: as `patch`.

    Source: mean ablation: Wang et al. 2022, "Interpretability in the Wild", §2.2.

    >>> ablate("post", 0, neuron=3).site
    'post'
    """
    named = {"head": head, "neuron": neuron, "position": position}
    return patch(site, layer, {name: i for name, i in named.items() if i is not None}, to)


def steer(
    layer: Any,
    direction: Float[Array, "*t d"],
    strength: Any = 1.0,
    *,
    site: str = "resid_pre",
    position: Any = None,
) -> At:
    """Return the edit that adds strength · direction to the stream.

    Source: Turner et al. 2023, "Activation Addition".

    Args:
        layer: as in `at`.
        direction: one for all positions, or one for each.
        site: any site with an axis `d`.
        position: None: all.

    Raises:
        ValueError: as `patch`; a strength that is not a single number.

    >>> steer(0, jnp.ones(8), -2.0).site
    'resid_pre'
    """
    check_numbers("strength", strength)
    if jnp.ndim(strength) or jnp.iscomplexobj(strength):
        raise ValueError(
            f"strength has shape {jnp.shape(strength)} and dtype {jnp.result_type(strength)}; "
            "give one real number, and use jax.vmap for several"
        )
    check_numbers("direction", direction)
    index = {} if position is None else {"position": position}
    return acting(
        site, layer, Partial(add, checked(site, index), direction, _number("strength", strength))
    )


def freeze_pattern(pattern: Float[Array, "l n t s"]) -> At:
    """Return the edit that makes every head attend as in another run, given its `out.activations["pattern"]`.

    With frozen patterns, attention is linear in the values that the heads read.

    Raises:
        ValueError: in the pass, a pattern with other numbers of layers, heads or tokens.
    """
    return patch_layers("pattern", None, pattern)


def knock_out(query: Any, key: Any, *, layer: Any = None, head: Any = None) -> At:
    """Return the edit that stops queries from attending to keys: it sets their scores to -inf.

    A query that is left without any key gives NaN. Pairs that the mask already excludes, such as later keys, do not
    change.

    Source: Geva et al. 2023, "Dissecting Recall of Factual Associations", §5.

    Args:
        query: a position or several; None: all.
        key: a position or several; None: all.
        layer: as in `at`.
        head: None: all.

    Raises:
        ValueError: as `patch`; keys that all come after the queries.

    >>> knock_out(5, jnp.array([0, 1])).site
    'scores'
    """
    named = {"position": query, "source": key, "head": head}
    edit = patch("scores", layer, {name: i for name, i in named.items() if i is not None}, -jnp.inf)
    last, first = concrete(query), concrete(key)
    if last.size and first.size and first.min() > last.max():
        raise ValueError(
            f"key={key} comes after query={query}, so no query attends to it; choose an earlier key"
        )
    return edit
