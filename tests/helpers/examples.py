"""How many examples hypothesis draws: few in every run, ten times as many with `--hypothesis-profile nightly`."""

from typing import Any

import hypothesis

FEW = 10
"""Examples of a test that names no number, in the profile `few`."""


def examples(number: int, **options: Any) -> hypothesis.settings:
    """Settings for a test whose examples cost more, or less, than most: so many of them in the profile `few`."""
    scale = hypothesis.settings().max_examples / FEW
    return hypothesis.settings(max_examples=round(number * scale), **options)
