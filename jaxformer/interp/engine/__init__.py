"""How the inside view's sweeps, edits and lenses work; its users need none of these files."""
