"""A machine that stops in the middle of writing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Crash(BaseException):
    """The machine stops here."""


def crashes(call: str, moment: int, write: Callable[[], object]) -> bool:
    """Whether writing came to a stop: after `moment` calls of fsync, replace or unlink, at the next."""
    left = [moment]
    owner = os if call == "fsync" else Path
    real = getattr(owner, call)

    def crash(*args: Any, **options: Any) -> Any:
        if left[0] == 0:
            raise Crash
        left[0] -= 1
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, call, crash)
        try:
            write()
        except Crash:
            return True
    return False
