"""Train a model from one command: `python -m train`.

Reading order: `presets` (what to train), `corpora` and `batches` (on what; `prepare` and `tokenfile` if
it is too large for memory), `optimizer` and `step` (how), `loop` (until when), `report` and `sample`
(what came of it).
"""
