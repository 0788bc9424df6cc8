"""What a training step takes, before it is run: memory, arithmetic, collectives, and a lower bound of its time."""
