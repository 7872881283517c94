"""Reads an instance's logs: the last lines, and new ones as they are written. Blocks.

A full file is renamed to FILE.1 and begun anew (cli/logfile.py). A reader keeps the old file open,
reads it to its end, and goes on with the new one.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Self

from api.operate.logs.lines import Filter, LineParser, LogLine

MAX_FILES = 300
END_BYTES = 1_000_000  # of one file that are searched for its last lines
END_BYTES_OF_MANY = 200_000  # the same, of each of several files
STEP_BYTES = 256_000  # read at a time from a file that grows
_PROCESS = re.compile(r"[\w@.-]{1,100}")


@dataclass(frozen=True, slots=True)
class LogFile:
    """One process's log. `modified`: Unix seconds."""

    process: str
    path: Path
    size: int
    modified: float


def log_files(folder: Path) -> list[LogFile]:
    """The logs in the folder, by name; if there are too many, those that changed last."""
    files: list[LogFile] = []
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return []
    for entry in entries:
        process = entry.name.removesuffix(".log")
        if process == entry.name or _PROCESS.fullmatch(process) is None:
            continue
        if entry.is_file(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            path = Path(entry.path)
            files.append(LogFile(process, path, status.st_size, status.st_mtime))
    files.sort(key=lambda file: -file.modified)
    return sorted(files[:MAX_FILES], key=lambda file: file.process)


class Tail:
    """One log from its last lines on. One that cannot be read has none."""

    def __init__(self, process: str, path: Path) -> None:
        self._process = process
        self._path = path
        self._file: BufferedReader | None = None
        self._rest = b""
        self._parser = LineParser(process)

    def last(self, chosen: Filter, count: int, end_bytes: int = END_BYTES) -> list[LogLine]:
        """The last `count` lines that pass among those in `end_bytes`; then `grown` goes on."""
        self._file = self._open()
        if self._file is None:
            return []
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(max(0, size - end_bytes))
        if size > end_bytes:
            self._file.readline()  # its beginning is missing
        lines = [line for line in self._take(self._file, end_bytes) if chosen.passes(line)]
        return lines[-count:]

    def grown(self, chosen: Filter) -> list[LogLine]:
        """The lines since the last call, at most STEP_BYTES of them."""
        if self._file is None:
            self._file, self._rest = self._open(), b""
        if self._file is None:
            return []
        lines = list(self._take(self._file, STEP_BYTES))
        if not lines and self._was_replaced(self._file):
            self.close()
        return [line for line in lines if chosen.passes(line)]

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> BufferedReader | None:
        try:
            return self._path.open("rb")
        except OSError:
            return None

    def _take(self, file: BufferedReader, size: int) -> Iterator[LogLine]:
        """The whole lines in the next `size` bytes."""
        *whole, self._rest = (self._rest + file.read(size)).split(b"\n")
        self._rest = self._rest[-STEP_BYTES:]  # a line without an end is no reason to keep it all
        for raw in whole:
            yield self._parser.parse(raw.decode(errors="replace"))

    def _was_replaced(self, file: BufferedReader) -> bool:
        try:
            now = self._path.stat()
        except OSError:
            return True
        mine = os.fstat(file.fileno())
        return (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev)


class Tails:
    """Several logs as one, in the order of time as far as lines have one."""

    def __init__(self, folder: Path, process: str = "") -> None:
        self._folder = folder
        self._process = process
        self._tails: dict[str, Tail] = {}

    def last(self, chosen: Filter, count: int) -> list[LogLine]:
        """The last `count` lines of all."""
        end_bytes = END_BYTES if self._process else END_BYTES_OF_MANY
        lines: list[LogLine] = []
        for file in self._files():
            lines += self._open(file).last(chosen, count, end_bytes)
        return _in_order(lines)[-count:]

    def grown(self, chosen: Filter) -> list[LogLine]:
        """The lines since the last call; a new process's log is read from its beginning."""
        lines: list[LogLine] = []
        for file in self._files():
            lines += self._open(file).grown(chosen)
        return _in_order(lines)

    def close(self) -> None:
        """Closes all files."""
        for tail in self._tails.values():
            tail.close()
        self._tails.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _files(self) -> list[LogFile]:
        files = log_files(self._folder)
        if not self._process:
            return files
        return [file for file in files if file.process == self._process]

    def _open(self, file: LogFile) -> Tail:
        if file.process not in self._tails:
            self._tails[file.process] = Tail(file.process, file.path)
        return self._tails[file.process]


def _in_order(lines: Iterable[LogLine]) -> list[LogLine]:
    """Lines without a time stay after the line that they followed."""
    return sorted(lines, key=lambda line: line.at or 0.0)
