"""Train a model with one command: `python -m train`. `minimal` is the same training in one file.

Reading order: `recipe` and `presets` (what to train), `start` and `data` (the model to start from and the text),
`loss`, `optimizer`, `step` and `compiled` (one training step, and many in one call), `run` and `loop` (the run),
`evaluate` and `watch` (validation), `runs`, `metrics` and `checkpoints` (the folder of a run), `report` and `figures`
(its results). `devices` shards a run over a mesh and joins processes. `plan`, `prepare`, `sample`, `compare` and
`story` are commands.
"""
