"""What a training step takes, before it is run: memory, arithmetic, and a lower bound of its time."""
