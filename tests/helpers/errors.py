"""What an error must say: its type, and the fields and values that it names. Its wording is free."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

NUMBER = re.compile(r"-?\d+(\.\d+)?")


def check_names(message: str, *named: object) -> None:
    """Check that the message names each of these, and not as a part of a longer word or number.

    >>> check_names("top_k=1 must be at least 2", "top_k=1", 2)
    >>> check_names("top_k=1.5 is not an integer", 1)
    Traceback (most recent call last):
    AssertionError: '1' is not named in: top_k=1.5 is not an integer
    """
    for one in map(str, named):
        before, after = (
            (r"(?<![\w.-])", r"(?!\w|\.\d)") if NUMBER.fullmatch(one) else (r"(?<!\w)", r"(?!\w)")
        )
        found = re.search(before + re.escape(one) + after, message)
        assert found, f"{one!r} is not named in: {message}"


@contextlib.contextmanager
def raises(kind: type[BaseException], *named: object) -> Iterator[pytest.ExceptionInfo[Any]]:
    """The block raises this error, whose message names these fields and values.

    >>> with raises(ValueError, "n_heads=10", "n_kv_heads"):
    ...     raise ValueError("n_heads=10 is not a multiple of n_kv_heads=4")
    """
    with pytest.raises(kind) as caught:
        yield caught
    check_names(str(caught.value), *named)
