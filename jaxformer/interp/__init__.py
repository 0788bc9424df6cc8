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

The folder `engine` has their internals. Nothing is imported here: import from a file, as in
`from jaxformer.interp.patching import patch_sweep`.
"""
