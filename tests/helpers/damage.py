"""Damaged files: cut short, or with one bit flipped."""

from pathlib import Path

from hypothesis import strategies as st


@st.composite
def damaged(draw: st.DrawFn, content: bytes, within: int | None = None) -> bytes:
    """What is left of a file that was damaged once, in its first `within` bytes."""
    place = draw(st.integers(0, len(content[:within]) - 1))
    cut = draw(st.booleans())
    flipped = bytes([content[place] ^ (1 << draw(st.integers(0, 7)))])
    return content[:place] if cut else content[:place] + flipped + content[place + 1 :]


def write(folder: Path, files: dict[str, bytes]) -> None:
    """All the files of a folder, by name."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
