"""The inside view: small pure functions on what `forward` captures and edits.

Read in this order: `edit` (what to change, as data; `change` is what that is made of), `patching` and `paths` (every
part and every path changed in turn; `sweep` and `climb` are their engine, `metric` what they measure), `attribution`,
`edges` and `jacobian` (the same to first order, from gradients), `decompose` and `lens` (the stream as a sum of parts,
and parts as logits), `circuits`, `factored` and `heads` (what the weights say, and what heads look at), `fold` and
`refactor` (the same model in clearer weights), `plots`. `parts` and `components` name places and components.

Nothing is imported here: import a room, `from jaxformer.interp.patching import patch_sweep`.
"""
