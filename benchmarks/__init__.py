"""Benchmarks of jaxformer and of other implementations: `python -m benchmarks`."""
