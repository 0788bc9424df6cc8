"""The internals of sweeps, edits and lenses; users of `jaxformer.interp` do not need these files."""
