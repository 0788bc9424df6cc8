"""Train a model from one command: `python -m train`.

Reading order: `recipe` and `presets` (what to train), `data`, `corpora`, `encoding`, `tokenfile`, `tasks`, `batches`
and `start` (on what), `optimizer` and `step` (how), `run` and `loop` (until when), `watch` and `evaluate` (what is
seen meanwhile), `runs`, `metrics` and `checkpoints` (what is kept), `outcome`, `figures` and `report` (what came of
it).
"""
