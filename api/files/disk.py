"""The contents of files: private files in one directory, under names that we make.

Blocking, but for `opened`: call these from a thread. Several API processes must see the same files.
"""

import asyncio
import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 262_144  # bytes of one read
_NAME = re.compile(r"[0-9a-f]{24}")
_PARTIAL = re.compile(r"[0-9a-f]{24}\.[0-9]{1,9}")
ABANDONED_SECONDS = 3600.0  # after which a content without a row is nobody's


def new_name() -> str:
    """A fresh name of a content."""
    return secrets.token_hex(12)


class ContentStore:
    """Contents below `home`/files. `incoming`: uploads under way; `partial`: results of batches."""

    def __init__(self, home: Path) -> None:
        self.directory = home / "files"
        self.incoming = self.directory / "incoming"
        self.partial = self.directory / "partial"

    def prepare(self) -> None:
        """Makes the directories, readable by the owner alone."""
        for directory in (self.directory, self.incoming, self.partial):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a content is. Raises ValueError for a name that is not ours."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no content's name")
        return self.directory / name

    def create(self, name: str) -> BinaryIO:
        """A new, empty content, open for writing."""
        self.prepare()
        return os.fdopen(os.open(self.path(name), _CREATE, 0o600), "wb")

    def adopt(self, file: Path, name: str) -> None:
        """Makes an uploaded file a content."""
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(self.path(name))

    def delete(self, name: str) -> None:
        """Removes a content, if it is there. Who reads it now may read on."""
        self.path(name).unlink(missing_ok=True)

    def remove_abandoned(self, contents: Collection[str], batches: Collection[str]) -> int:
        """Deletes old contents, partial results and uploads that no row names; returns how many."""
        removed = 0
        for path in _old_files(self.directory, self.incoming, self.partial):
            owners = batches if path.parent == self.partial else contents
            if path.name.partition(".")[0] not in owners:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def part(self, batch: str, lease: int) -> Path:
        """Where the owner of a lease writes a batch's results. Raises ValueError."""
        self.path(batch)
        return self.partial / f"{batch}.{lease}"

    def parts(self, batch: str) -> list[Path]:
        """What all owners of a batch have written, the first owner's first."""
        self.path(batch)
        if not self.partial.is_dir():
            return []
        mine = [path for path in self.partial.glob(f"{batch}.*") if _PARTIAL.fullmatch(path.name)]
        return sorted(mine, key=_lease_of)


async def opened(path: Path) -> BinaryIO:
    """The content, open for reading: closed again if the caller is cancelled meanwhile."""
    opening = asyncio.create_task(asyncio.to_thread(path.open, "rb"))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            (await opening).close()
        raise


_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY


def _old_files(*directories: Path) -> Iterator[Path]:
    oldest = time.time() - ABANDONED_SECONDS
    for directory in directories:
        for path in directory.iterdir() if directory.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_mtime < oldest:
                    yield path


def _lease_of(part: Path) -> int:
    return int(part.name.partition(".")[2])
