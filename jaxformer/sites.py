"""The named sites inside a forward pass, where a value can be captured or edited."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Int

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


Layer = Int[Array, ""] | int | None
"""A layer's index: traced, unless the blocks are a list. An edit receives None at a site that belongs to no layer."""
EditFunction = Callable[[str, Layer, Any], Any]
"""A function from (site, layer, value) to the value that the forward pass continues with."""
Edit = EditFunction | Mapping[Any, Callable[[Any], Any]]
"""What `edit=` takes: a function; edits as data, which are such functions too; or, by site, functions of the value."""


@jax.tree_util.register_static
class Identity:
    """The type of `identity`, the edit that changes nothing."""

    def __call__(self, site: str, layer: Layer, value: Any) -> Any:
        """Return the value."""
        return value


identity: EditFunction = Identity()


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
