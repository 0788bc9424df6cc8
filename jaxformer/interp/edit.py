"""Edits as data: what to change, at which site, in which layer; for `forward(edit=...)` and all that takes one.

An edit of this file is a pytree. Its layer, its indices and its values may be traced, so that an edit can be built
inside a vmapped function and a sweep is one compiled program. It knows the site it acts on, and a pass that never
reaches it refuses it: a plain function of a site that this model lacks would do nothing, in silence. Only of a traced
layer or index nobody can tell, while tracing, that it is not there: such a one changes nothing.

A position counts from the start of a pass. `generate` makes many passes, the prompt's (with a window: one for each
of its pieces) and then one for each token, so that there an edit of a position is seldom what is meant, and one of a
position beyond 0 is refused: a token's own pass has no other.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Shaped

from jaxformer.interp.engine.change import At, Chain, acting, add, of_value, put, put_own
from jaxformer.interp.engine.parts import Index, checked, concrete
from jaxformer.model.sites import WHOLE, Edit


def at(site: str, layer: Any, fn: Callable[[Any], Any]) -> At:
    """The edit that puts `fn(value)` in the place of a site's value.

    Args:
        site: a name of `jaxformer.SITES`.
        layer: its number, from 0, maybe traced (`jax.vmap` for several); None: every layer, or a site without one.
        fn: of one layer's value, whose axes `jaxformer.model.sites.AXES` tells. It may close over traced values; as a
            `jax.tree_util.Partial` its arguments are leaves of the edit. It runs in every layer, and what it gives in
            others is left out: there too its derivative must be finite.

    Raises:
        ValueError: an unknown site, a layer of a site that has none, a layer that is no whole number, an fn that is
            no function; in the pass, a site or a layer that the model lacks.

    >>> double = at("mlp_out", 1, lambda value: 2 * value)
    >>> double.site, double.layer
    ('mlp_out', 1)
    """
    if not callable(fn):
        raise ValueError(f"fn={fn!r} is no function; to put a value there use patch")
    return acting(site, layer, Partial(of_value, Partial(fn)))


def chain(*edits: Edit) -> Chain:
    """Several edits, one after another, as one.

    >>> len(chain(at("q", 0, abs), at("k", 0, abs)).edits)
    2
    """
    return Chain(edits)


def patch(site: str, layer: Any, index: Index | None, value: Any) -> At:
    """The edit that puts a part of another value, say another run's, in the place of the same part here.

    Args:
        site: where.
        layer: as in `at`.
        index: the part: {"position": 3, "head": 1}. Names that are not there stand for all; None for the whole.
        value: broadcasts to the site's value, of one layer. Only the part at `index` of it is used.

    Raises:
        ValueError: as `at`; a name that the site has no axis for; while tracing, an index out of range or a value
            of another shape.

    >>> import jax, jaxformer
    >>> config = jaxformer.Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=0, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> silent = patch("z", 1, {"head": 0}, 0.0)
    >>> out = jaxformer.forward(params, config, jnp.array([3, 1]), edit=silent, capture=("z",))
    >>> bool((out.activations["z"][1, :, 0] == 0).all())
    True
    """
    return acting(site, layer, Partial(put, checked(site, index), value))


def patch_layers(site: str, index: Index | None, values: Shaped[Array, "l ..."]) -> At:
    """The same in every layer at once, each with its own value: `values` as captured, layers in front.

    Raises:
        ValueError: as `patch`; a site without layers; in the pass, values of another shape.
    """
    if site in WHOLE:
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
    """The edit that takes a part out: its value becomes 0, or what `to` says, say its mean over many texts.

    Zero is a value that the model may never have seen there; the mean over a distribution keeps what all of its
    texts have in common (Source: Wang et al. 2022, "Interpretability in the Wild", §2.2).

    Args:
        site: where: z or head_out for a head, post for a neuron, attn_out or mlp_out for a whole layer.
        layer: as in `at`.
        head: which; None: all. At k, v and rot_k a key/value head.
        neuron: which; None: all.
        position: which; None: all.
        to: broadcasts to the site's value.

    Raises:
        ValueError: as `patch`.

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
    """The edit that adds a direction to the stream.

    Source: Turner et al. 2023, "Activation Addition".

    Args:
        layer: as in `at`.
        direction: one for all positions, or one for each.
        strength: its factor, one number.
        site: another site of vectors `d`.
        position: where to add it; None: everywhere.

    Raises:
        ValueError: as `patch`; a strength that is no single number.

    >>> steer(0, jnp.ones(8), -2.0).site
    'resid_pre'
    """
    if jnp.ndim(strength) or jnp.iscomplexobj(strength):
        raise ValueError(
            f"strength has shape {jnp.shape(strength)} and dtype {jnp.result_type(strength)}; "
            "give one real number, and jax.vmap for several"
        )
    index = {} if position is None else {"position": position}
    return acting(site, layer, Partial(add, checked(site, index), direction, strength))


def freeze_pattern(pattern: Float[Array, "l n t s"]) -> At:
    """The edit that lets every head attend as it did in another run: as captured, `out.activations["pattern"]`.

    What is left of the model is linear in what the heads read but for norms and neurons.

    Raises:
        ValueError: in the pass: a pattern of another number of layers, heads or tokens.
    """
    return patch_layers("pattern", None, pattern)


def knock_out(query: Any, key: Any, *, layer: Any = None, head: Any = None) -> At:
    """The edit that keeps queries from looking at keys: their scores become -inf, and others get the attention.

    A query that may then look at nothing gives NaN. Of several queries and keys, pairs that see nothing of each other
    anyway, later keys and those outside a window, stay as they are.

    Source: Geva et al. 2023, "Dissecting Recall of Factual Associations", §5.

    Args:
        query: a position, or several; None: all.
        key: likewise.
        layer: as in `at`.
        head: which; None: all.

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
            f"key={key} comes after query={query}: no query looks there, and to keep it from that does nothing"
        )
    return edit
