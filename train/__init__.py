"""Train a model from one command: `python -m train`.

Read in this order: `recipe` and `presets` (what to train), `start` and `data` (on what), `loss`, `optimizer`
and `step` (how), `run` and `loop` (until when), `evaluate` and `watch` (what is seen meanwhile), `runs`,
`metrics` and `checkpoints` (what is kept), `report` and `figures` (what came of it). `devices` lays a run on a
mesh and joins processes; `plan`, `prepare`, `sample`, `compare` and `story` are commands of their own.
"""
