"""A log file that stays below a size and never raises. Standard library only."""

import os
from pathlib import Path

from cli.errors import explain_os_error

LOG_BYTES = 10_000_000  # of one file
OLDER_FILES = 2  # .1 and .2, so a process's logs take three times LOG_BYTES at most


class LogFile:
    """Appends to a file that only its owner can read; a full one becomes FILE.1, and that FILE.2.

    Output that cannot be written is dropped, so that no process blocks on a full disk. The next
    successful write starts with a line that says how many bytes are missing.
    """

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self.path = path
        self._limit = limit
        self._fd: int | None = None
        self._size = 0
        self._lost = 0  # bytes
        self._reason = ""

    def write(self, data: bytes) -> None:
        """Appends `data`; never raises OSError."""
        try:
            self._open()
            if self._size and self._size + len(data) > self._limit:
                self._rotate()
            self._note_loss()
            self._append(data)
        except OSError as error:
            self._lost += len(data)
            self._reason = str(explain_os_error(error))
            self.close()

    def close(self) -> None:
        """Closes the file; another write opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> None:
        if self._fd is None:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(OLDER_FILES, 0, -1):
            older = self.path
            if number > 1:
                older = _numbered(self.path, number - 1)
            if older.exists():
                older.replace(_numbered(self.path, number))
        self._open()

    def _note_loss(self) -> None:
        if self._lost:
            self._append(f"[{self._lost} bytes of this log are missing: {self._reason}]\n".encode())
            self._lost = 0

    def _append(self, data: bytes) -> None:
        """Writes all of `data`: a disk that fills up takes a part first. Raises OSError."""
        assert self._fd is not None  # noqa: S101
        while data:
            written = os.write(self._fd, data)
            self._size += written
            data = data[written:]


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
