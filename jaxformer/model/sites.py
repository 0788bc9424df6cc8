"""The named places inside a forward pass where a value can be captured or edited."""

from collections.abc import Callable

from jaxtyping import Array, Int, Shaped

from jaxformer.config import Compute, Config

AXES = {
    "embed": "t d", "pos_embed": "t d",
    "resid_pre": "t d", "attn_scale": "t 1", "q": "t n h", "k": "t k h", "v": "t k h",
    "rot_q": "t n h", "rot_k": "t k h", "scores": "n t s", "pattern": "n t s", "z": "t n h",
    "head_out": "t n d", "attn_post_scale": "t 1", "attn_out": "t d",
    "resid_mid": "t d", "mlp_scale": "t 1", "pre": "t f", "pre_linear": "t f", "post": "t f",
    "mlp_post_scale": "t 1", "mlp_out": "t d", "resid_post": "t d",
    "final_scale": "t 1", "final": "t d", "logits": "t v",
}  # fmt: skip
"""Each site's axes, as an edit receives its value, by the letters of the dimension key."""

SITES = tuple(AXES)
"""Every site, in the order in which a forward pass reaches it; the names are TransformerLens's."""

WHOLE = frozenset({"embed", "pos_embed", "final_scale", "final", "logits"})
"""The sites that belong to no layer."""

READ = frozenset({"final_scale", "final", "logits"})
"""The sites that hold only the positions that are read."""

ASKED = frozenset(
    {"resid_pre", "attn_scale", "k", "v", "rot_k"}  # what attention reads of every state
)
"""The sites of a layer that hold all positions, also where only some of its states ask."""


def position_axis(site: str) -> int:
    """The axis along which a site's value, as an edit receives it, has positions."""
    return AXES[site].split().index("t")


def activation_axis(site: str) -> int:
    """The same in a pass's activations, where layers are stacked in front."""
    return position_axis(site) + (site not in WHOLE)


class Site(str):
    """A site's name, as an edit receives it: comparing it with a name that is no site is an error.

    So that a misspelt edit, `if site == "patern"`, fails while tracing instead of doing nothing. A set or a
    dict of names compares hashes, not names, and cannot tell: prefer `==`, or `in` on a tuple. A site that
    this Config lacks is never visited; `shown(config)` lists those that are.
    """

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and not isinstance(other, Site) and str(other) not in _KNOWN:
            raise ValueError(f"unknown site {other!r}; the sites are {', '.join(SITES)}")
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other


_KNOWN = frozenset(SITES)

Layer = Int[Array, ""] | None
"""A traced layer index; None at a site that belongs to no layer."""
Edit = Callable[[Site, Layer, Array], Array]
"""Maps (site, layer, value) to the value that the forward pass goes on with."""


def keep(site: Site, layer: Layer, value: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The edit that changes nothing."""
    del site, layer
    return value


def shown(config: Config, compute: Compute | None = None) -> tuple[str, ...]:
    """The sites that a forward pass of this Config reaches, in order.

    >>> shown(Config(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=0, n_vocab=5))[-3:]
    ('resid_post', 'final', 'logits')
    """
    hidden: set[str] = set()
    if config.position not in ("learned", "sinusoidal"):
        hidden |= {"pos_embed"}
    if config.position != "rotary":
        hidden |= {"rot_q", "rot_k"}
    if config.norm == "none":
        hidden |= {"final_scale"}
    if not config.norms("before"):
        hidden |= {"attn_scale", "mlp_scale"}
    if not config.norms("after"):
        hidden |= {"attn_post_scale", "mlp_post_scale"}
    if not config.d_mlp:
        hidden |= {
            "resid_mid",
            "mlp_scale",
            "pre",
            "pre_linear",
            "post",
            "mlp_post_scale",
            "mlp_out",
        }
    if not config.gated:
        hidden |= {"pre_linear"}
    if config.parallel:
        hidden |= {"resid_mid"}
    if compute is not None and compute.kernel != "einsum":
        hidden |= {"scores", "pattern"}
    return tuple(site for site in SITES if site not in hidden)
