"""What an error must say: its type, and the fields and values that it names. Its wording is free."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest


def check_names(message: str, *named: object) -> None:
    """The message names each of these, not as a part of a longer word or number."""
    for one in named:
        found = re.search(rf"(?<!\w){re.escape(str(one))}(?!\w)", message)
        assert found, f"{str(one)!r} is not named in: {message}"


@contextlib.contextmanager
def raises(kind: type[BaseException], *named: object) -> Iterator[pytest.ExceptionInfo[Any]]:
    """The block raises this error, whose message names these fields and values.

    >>> with raises(ValueError, "n_heads=10", "n_kv_heads"):
    ...     raise ValueError("n_heads=10 is not a multiple of n_kv_heads=4")
    """
    with pytest.raises(kind) as caught:
        yield caught
    check_names(str(caught.value), *named)
