"""Text generation: prefill, sampling, streamed tokens and beam search.

Read in this order: `inputs` (prompts as one array), `sampling` (logits to a token), `request` (what is static and what
is traced in a call), `prefill` (prompts into the cache), `loop` (one token at a time), `generation`; then `streaming`
and `beam`.
"""
