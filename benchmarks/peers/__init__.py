"""Other people's implementations of the same architectures, run with our weights."""
