"""What a training step costs: memory, arithmetic, and what devices send each other, read off its program."""
