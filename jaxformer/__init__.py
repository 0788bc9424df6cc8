"""A GPT-style Transformer as pure functions over parameter pytrees.

Read in this order: `config`, `stream`, `attention`, `mlp`, `transformer`; then `norm` and `position`
(what later GPTs added), `sites` (how to look inside), `spec` (how parameters begin), and beside them
`reference`, the same model in plain Python.

The dimension key, the same letters in every einsum and every annotation:

    l  layer                             n  head
    b  batch                             k  key/value head
    t  position (query, destination)     g  query heads per key/value head
    s  position (key, source)            h  head width
    d  model (residual stream)           f  MLP neuron
    c  position-table row                v  vocabulary
"""
