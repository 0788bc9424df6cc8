"""How a forward pass captures and edits: the Tap that it calls at each site, and what may be asked of it."""

from collections.abc import Collection, Iterable

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Shaped

from jaxformer.config import Compute, Config
from jaxformer.model.sites import SITES, Edit, Layer, Site, keep, shown


class Tap:
    """What the model calls at each site: it edits the value, and keeps it if it was asked for.

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
        if site not in SITES:
            raise ValueError(f"unknown site {site!r}; this model shows {', '.join(seen)}")
        if site not in shown(config):
            raise ValueError(f"this Config has no site {site!r}; it shows {', '.join(seen)}")
        if site not in seen:
            raise ValueError(
                f"kernel={compute.kernel!r} never forms {site!r}; capture it with Compute(kernel='einsum')"
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
