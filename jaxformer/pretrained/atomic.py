"""Files that are replaced whole: a reader, or a crash, finds the old one or the new one and nothing between."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, data: bytes) -> None:
    """Write a file's new bytes; readers see the old ones or the new ones."""
    with replacement(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, renamed to its own when all was written, removed if not."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    file = partial.open("wb")
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        partial.replace(path)
        with contextlib.suppress(OSError):  # where a folder can be synced, the new name is safe too
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):  # on a full disk closing fails as writing did
            file.close()
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
