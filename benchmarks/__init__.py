"""Timed runs of the model, beside honest peers: `python -m benchmarks`."""
