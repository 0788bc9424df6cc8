"""The named places inside a forward pass where a value can be captured or edited."""

from collections.abc import Callable, Collection, Iterable
from typing import get_args

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Int, Shaped

from jaxformer.config import Compute, Config, Saved

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


def check_capture(capture: Iterable[str], config: Config, compute: Compute) -> None:
    """Refuse a site that this forward pass does not show.

    Raises:
        ValueError: an unknown site, or one that the Config or the kernel lacks.
    """
    if isinstance(capture, str):
        raise ValueError(
            f"capture={capture!r} is one string; give a tuple of sites: ({capture!r},)"
        )
    seen = shown(config, compute)
    for site in capture:
        if site not in _KNOWN:
            raise ValueError(f"unknown site {site!r}; this model shows {', '.join(seen)}")
        if site not in shown(config):
            raise ValueError(f"this Config has no site {site!r}; it shows {', '.join(seen)}")
        if site not in seen:
            raise ValueError(
                f"kernel={compute.kernel!r} never forms {site!r}; capture it with Compute(kernel='einsum')"
            )


def check_saved(config: Config, compute: Compute) -> None:
    """Refuse sites for the backward pass to keep that this Config does not have.

    Raises:
        ValueError: naming the first.
    """
    seen = shown(config, compute)
    for site in compute.saved:
        if site not in seen:
            raise ValueError(
                f"saved={compute.saved!r} holds {site!r}, a site that this Config does not have; "
                f"choose from {', '.join(site for site in seen if site in get_args(Saved))}"
            )


def check_edit(edit: Edit, config: Config, compute: Compute) -> None:
    """Let an edit that declares what it acts on refuse a model without that, where it would do nothing.

    An edit may have a method `check(config, compute)`, as those of `jaxformer.interp.edit` have; a plain
    function has none.

    Raises:
        ValueError: as the edit's own check.
    """
    check = getattr(edit, "check", None)
    if check is not None:
        check(config, compute)


class Tap:
    """What the rooms of the model call at each site: edits the value, and keeps it if it was asked for.

    At the sites in `saved` it also tells `jax.checkpoint` the value's name.

    A Tap lives while one layer is traced and is thrown away; `captured` leaves it as a plain output.
    """

    def __init__(
        self,
        capture: Iterable[str] = (),
        edit: Edit = keep,
        layer: Layer = None,
        saved: Collection[str] = (),
    ):
        self.capture, self.edit, self.layer, self.saved = frozenset(capture), edit, layer, saved
        self.captured: dict[str, Array] = {}

    def __call__(self, site: str, value: Shaped[Array, "*s"]) -> Shaped[Array, "*s"]:
        """The value to go on with.

        Raises:
            ValueError: the edit returned another shape, or a dtype that the site's cannot hold.
        """
        value = self.edited(site, value)
        if site in self.saved:
            # The second name is no policy's: it is given anew in the backward pass, to the one value kept. Without
            # it every nested checkpoint that reads the value would keep a copy of its own.
            value = checkpoint_name(checkpoint_name(value, site), f"{site} again")
        if site in self.capture:
            self.captured[site] = value
        return value

    def edited(self, site: str, value: Shaped[Array, "*s"]) -> Shaped[Array, "*s"]:
        """The edit's value in the site's dtype; the very same object if the edit changed nothing."""
        edited = self.edit(Site(site), self.layer, value)
        if edited is value:
            return value
        if edited is None:
            raise ValueError(
                f"the edit returned None at site {site!r}; return the value, changed or not"
            )
        edited = jnp.asarray(edited)
        if edited.shape != value.shape:
            raise ValueError(
                f"the edit returned shape {edited.shape} at site {site!r}, which holds {value.shape}"
            )
        if jnp.issubdtype(edited.dtype, jnp.complexfloating):
            raise ValueError(
                f"the edit returned {edited.dtype} at site {site!r}, which holds {value.dtype}"
            )
        return edited.astype(value.dtype)

    def refuse(self, site: str, value: Shaped[Array, "..."], why: str) -> None:
        """Show a stand-in at a site that cannot be shown, to find an edit that would act there.

        Raises:
            ValueError: the edit returned anything but the value it was given.
        """
        if self.edit(Site(site), self.layer, value) is not value:
            raise ValueError(f"the edit acts on {site!r}, {why}")
