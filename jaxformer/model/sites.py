"""The named sites inside a forward pass, where a value can be captured or edited."""

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
"""The axes of each site's value, as an edit receives it, in the letters of the dimension key."""
SITES = tuple(AXES)
"""Every site, in the order of a forward pass. The names are TransformerLens's."""
MODEL_SITES = frozenset({"embed", "pos_embed", "final_scale", "final", "logits"})
"""The sites that belong to the model, not to a layer."""
LOGIT_SITES = frozenset({"final_scale", "final", "logits"})
"""The sites that hold only the positions whose logits are computed (`logits_at`)."""


def position_axis(site: str) -> int:
    """Return the position axis of a site's value, as an edit receives it."""
    return AXES[site].split().index("t")


def activation_axis(site: str) -> int:
    """Return the position axis of a site in `Output.activations`, where the layers are stacked in front."""
    return position_axis(site) + (site not in MODEL_SITES)


class Site(str):
    """A site's name, as an edit receives it. Comparing it with a string that is not a site's name is an error."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and not isinstance(other, Site) and str(other) not in SITES:
            raise ValueError(f"unknown site {other!r}; the sites are {', '.join(SITES)}")
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other


Layer = Int[Array, ""] | int | None
"""A layer's index, maybe traced. An edit receives None at a site that belongs to no layer."""
Edit = Callable[[Site, Layer, Array], Array]
"""A function from (site, layer, value) to the value that the forward pass continues with."""


def identity(site: Site, layer: Layer, value: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The edit that changes nothing."""
    del site, layer
    return value


def available_sites(config: Config, compute: Compute = Compute()) -> tuple[str, ...]:
    """List the sites that a forward pass of this Config reaches, in order.

    >>> available_sites(Config(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=0, n_vocab=5))[-3:]
    ('resid_post', 'final', 'logits')
    """
    mlp, before, after = config.d_mlp > 0, config.has_norm("before"), config.has_norm("after")
    rotary, einsum = config.position == "rotary", compute.kernel == "einsum"
    there = {
        "pos_embed": config.position in ("learned", "sinusoidal"), "rot_q": rotary, "rot_k": rotary,
        "attn_scale": before, "mlp_scale": before and mlp,
        "attn_post_scale": after, "mlp_post_scale": after and mlp, "final_scale": config.norm != "none",
        "scores": einsum, "pattern": einsum, "resid_mid": mlp and not config.parallel,
        "pre": mlp, "pre_linear": mlp and config.gated, "post": mlp, "mlp_out": mlp,
    }  # fmt: skip
    return tuple(site for site in SITES if there.get(site, True))
