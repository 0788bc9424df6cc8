"""Predictions for a training step, without running it: memory, FLOPs, collectives, a lower bound of the time."""
