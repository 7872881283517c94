"""How the preparation of a model reports its progress, and how far it is."""

from collections.abc import Callable
from pathlib import Path

Say = Callable[[str], None]  # a line for the waiting user


def gigabytes(size: int) -> str:
    """In words; `size`: bytes."""
    return f"{size / 1e9:.1f} GB"


def readable(size: int) -> str:
    """As `gigabytes`, with digits for what is smaller."""
    if size < 1e9:
        return f"{size / 1e6:.1f} MB"
    return gigabytes(size)


def bytes_in(folder: Path) -> int:
    """Of all files in the folder and below it; 0 without one. Files may come and go meanwhile."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:  # moved to its place meanwhile
            continue
    return total
