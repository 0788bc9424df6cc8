"""Capture and edit: the Tap that a forward pass calls at each site, and the program that a call with an edit runs."""

from collections.abc import Callable, Collection, Iterable
from functools import cache, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Shaped

from jaxformer.edits import Watched, is_data
from jaxformer.sites import Edit, EditFunction, Layer, identity


class Tap:
    """The callable that captures and edits: the model calls it with the value of each site.

    A Tap lives while one layer is traced. The values of the sites in `saved` are named for `jax.checkpoint`.
    """

    def __init__(
        self, capture: Iterable[str] = (), edit: EditFunction = identity, layer: Layer = None,
        saved: Collection[str] = (),
    ):  # fmt: skip
        self.capture, self.edit, self.layer, self.saved, self.captured = (
            frozenset(capture), edit, layer, saved, dict[str, Array]()
        )  # fmt: skip

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
        edited = self.edit(site, self.layer, value)
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


def compiled(
    run: Callable[..., Any], edit: Edit, *, static: tuple[str, ...] = (), donate: tuple[str, ...] = ()
) -> Callable[..., Any]:  # fmt: skip
    """Return `run`, whose first argument is an edit, as compiled code with this edit.

    Edits that are data share one program, which traces their numbers. A function is traced and compiled at every call,
    because it may close over what changes, and its program is dropped. Whoever gives a Watched checks it later.
    """
    if edit is identity:
        return partial(_shared(run, static, donate), edit)
    if is_data(edit):
        return partial(_shared(_watching(run), static, donate), edit)
    watching = run if isinstance(edit, Watched) else _watching(run)
    return _jit(partial(watching, edit), static, donate)


@cache
def _watching(run: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(run)
    def watching(edit: Edit, *args: Any, **options: Any) -> Any:
        out = run(watched := Watched(edit), *args, **options)
        watched.check_acted()
        return out

    return watching


def _jit(run: Callable[..., Any], static: tuple[str, ...], donate: tuple[str, ...]) -> Any:
    return jax.jit(run, static_argnames=static, donate_argnames=donate)


_shared = cache(_jit)
