"""The inside view: small pure functions on what `forward` captures and edits.

Read in this order: `edit` (what to change, as data), `patching` and `paths` (every part and every path changed
in turn; `metric` says by what number), `attribution`, `edges` and `jacobian` (the same to first order, from
gradients), `decompose` and `lens` (the stream as a sum of parts, and parts as logits; `components` has their
names), `circuits`, `factored` and `heads` (what the weights say, and what heads look at), `fold` and `refactor`
(the same model in clearer weights), `plots`. `engine` is how they work.

Nothing is imported here: import a file, `from jaxformer.interp.patching import patch_sweep`.
"""
