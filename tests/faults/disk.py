"""A disk that can be filled."""

import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own at `folder`. That needs root, as CI has."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes every byte that is left; returns the file that does, to be removed."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1):
            _append_all(file, b"\0" * size)
    return ballast


def _append_all(file: io.FileIO, block: bytes) -> None:
    """Writes the block again and again until the disk takes no more."""
    try:
        while True:
            file.write(block)
    except OSError:
        return
