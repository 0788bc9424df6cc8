"""The Transformer: a pure function of parameters and tokens, and all that it is made of.

Read in this order: `stream` (a state's two operations), `spec` and `params` (what arrays a model has, and how
they begin), `norm` and `position` (what later GPTs added), `attention`, `mlp`, `transformer`. Around these:
`kernels` (ways to compute attention), `sites` and `tap` (where a pass is looked into and changed), `cache`,
`remat`, `checks`, `score`.
"""
