"""The inside view: small pure functions on what `forward` captures."""
