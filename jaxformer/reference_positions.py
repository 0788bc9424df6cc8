"""Where a token is, for the plain program of `reference`: one position and one pair of coordinates at a time."""

import math


def position(config, weights):
    """A function from a position to the change that it makes to the first state."""
    if config.position == "learned":
        return lambda p: weights.W_pos[p]
    if config.position == "sinusoidal":
        return lambda p: [sinusoid(p, i, config.d_model) for i in range(config.d_model)]
    return lambda p: [0.0] * config.d_model


def sinusoid(p, i, d_model):
    """Coordinate i of position p: sines at even i, cosines at odd."""
    angle = p / 10_000 ** ((i - i % 2) / d_model)
    return math.cos(angle) if i % 2 else math.sin(angle)


def turner(config, local):
    """A function from a query or key and its position to the turned vector, in a layer with a window or without."""
    if config.position != "rotary":
        return lambda vector, p: vector
    half = round(config.d_head * config.rotary_fraction) // 2

    def turn(vector, p):
        turned = list(vector)
        for i in range(half):
            angle = p * frequency(config, i / half, local)
            a, b = vector[i], vector[i + half]
            turned[i] = a * math.cos(angle) - b * math.sin(angle)
            turned[i + half] = a * math.sin(angle) + b * math.cos(angle)
        return turned

    return turn


def frequency(config, part, local):
    """What a pair of coordinates turns by at each position; `part` is its place among the pairs, from 0 to 1."""
    if local and config.local_rotary_base is not None:
        return config.local_rotary_base**-part
    plain = config.rotary_base**-part
    if config.rotary_scaling == "linear":
        return plain / config.rotary_factor
    if config.rotary_scaling == "llama3":
        turns = config.rotary_context * plain / (2 * math.pi)
        if turns <= config.rotary_low:
            return plain / config.rotary_factor
        if turns < config.rotary_high:
            kept = (turns - config.rotary_low) / (config.rotary_high - config.rotary_low)
            return kept * plain + (1 - kept) * plain / config.rotary_factor
    return plain
