"""Atomic replacement of files: a reader, or a crash, finds the old content or the new, never a mixture."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file's content atomically."""
    with replacement(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends, and is deleted if the block fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    file = partial.open("wb")
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        partial.replace(path)
        with contextlib.suppress(OSError):  # make the rename durable, where a folder can be synced
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):  # on a full disk, closing fails too
            file.close()
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
