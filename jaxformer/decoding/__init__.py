"""How a text goes on: prefill, sampling, streams of tokens, beams.

Read in this order: `inputs` (prompts as one array), `prefill` (reading them), `sampling`, `loop` (a token at a
time, as one program), `generate`; then `streaming` and `beam`.
"""
