"""How many examples hypothesis draws: few in every run, ten times as many with `--hypothesis-profile nightly`."""

import hypothesis

FEW = 10
"""Examples of a test that names no number, in the profile `few`."""


def examples(number: int) -> hypothesis.settings:
    """Settings that draw `number` examples in the profile `few`, and ten times as many in `nightly`."""
    return hypothesis.settings(max_examples=number * hypothesis.settings().max_examples // FEW)
