"""Interpretability tools: small pure functions on what `forward` captures and edits.

Read the files in this order:

- `edit`: edits as data.
- `patching` and `paths`: activation patching of every part and every path; `metric` defines what they measure.
- `attribution`, `edges`, `jacobians`: the same to first order, from gradients; `nodes` is the graph of `edges`.
- `decompose`, `neurons`, `lens`: the stream as a sum of components, and components as logits; `components` has labels.
- `qk_ov`, `circuits`, `factored`: what the weights of heads say.
- `heads`, `match`: what heads attend to.
- `fold`, `refactor`: the same model with simpler weights.
- `plots`: heat maps.

The folder `engine` has their internals. A file is imported at its first use: `jaxformer.interp.patching.patch_sweep`,
or `from jaxformer.interp.patching import patch_sweep`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxformer.interp import (
        attribution,
        circuits,
        components,
        decompose,
        edges,
        edit,
        factored,
        fold,
        heads,
        jacobians,
        lens,
        match,
        metric,
        neurons,
        nodes,
        patching,
        paths,
        plots,
        qk_ov,
        refactor,
    )  # fmt: skip
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return importlib.import_module(f"jaxformer.interp.{name}")
        raise AttributeError(f"module 'jaxformer.interp' has no attribute {name!r}")


__all__ = [
    "attribution", "circuits", "components", "decompose", "edges", "edit", "factored", "fold", "heads", "jacobians",
    "lens", "match", "metric", "neurons", "nodes", "patching", "paths", "plots", "qk_ov", "refactor",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
