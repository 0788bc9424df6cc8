"""Capture and edit: the Tap that a forward pass calls at each site."""

from collections.abc import Collection, Iterable

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Shaped

from jaxformer.config import Compute, Config
from jaxformer.model.sites import SITES, Edit, Layer, Site, available_sites, identity


class Tap:
    """The callable that captures and edits: the model calls it with the value of each site.

    A Tap lives while one layer is traced. The values of the sites in `saved` are named for `jax.checkpoint`.
    """

    def __init__(
        self, capture: Iterable[str] = (), edit: Edit = identity, layer: Layer = None, saved: Collection[str] = ()
    ):  # fmt: skip
        self.capture, self.edit, self.layer, self.saved = frozenset(capture), edit, layer, saved
        self.captured: dict[str, Array] = {}

    def __call__(self, site: str, value: Shaped[Array, "*s"]) -> Shaped[Array, "*s"]:
        """Return the value that the pass continues with."""
        if self.edit is not identity:
            value = self.edited(site, value)
        if site in self.saved:
            # Without a second name, every nested checkpoint that reads the value would keep a copy of its own.
            value = checkpoint_name(checkpoint_name(value, site), f"{site} again")
        if site in self.capture:
            self.captured[site] = value
        return value

    def edited(self, site: str, value: Shaped[Array, "*s"]) -> Shaped[Array, "*s"]:
        """Return the edit's value in the site's dtype; the same object if the edit changed nothing."""
        edited = self.edit(Site(site), self.layer, value)
        if edited is value:
            return value
        if edited is None:
            raise ValueError(f"the edit returned None at site {site!r}; return the value")
        edited = jnp.asarray(edited)
        if edited.shape != value.shape or jnp.iscomplexobj(edited):
            raise ValueError(
                f"the edit returned shape {edited.shape} and dtype {edited.dtype} at site {site!r}, "
                f"which holds {value.shape} and {value.dtype}"
            )
        return edited.astype(value.dtype)

    def refuse(self, site: str, value: Shaped[Array, "..."], why: str) -> None:
        """Call the edit with a placeholder at a site that is never computed, to find an edit that acts there."""
        if self.edit(Site(site), self.layer, value) is not value:
            raise ValueError(f"the edit acts on {site!r}, {why}")


def check_capture(capture: Iterable[str], config: Config, compute: Compute) -> None:
    """Refuse to capture a site that this forward pass does not reach."""
    if isinstance(capture, str):
        raise ValueError(f"capture={capture!r} is one string; give a tuple: ({capture!r},)")
    available = available_sites(config, compute)
    for site in capture:
        if site not in available:
            why = f"this Config has no site {site!r}" if site in SITES else f"unknown site {site!r}"
            if site in available_sites(config):
                why = f"kernel={compute.kernel!r} never computes {site!r}; use kernel='einsum'"
            raise ValueError(f"{why}; the sites are {', '.join(available)}")


def check_edit(edit: Edit, config: Config, compute: Compute) -> None:
    """Call the edit's method `check(config, compute)`, if any, which refuses a model in which the edit does nothing."""
    if check := getattr(edit, "check", None):
        check(config, compute)
