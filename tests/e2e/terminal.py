"""A program in a terminal of its own: what it writes, keys, and the window's size."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Self

from tests.instance import WAIT_SECONDS

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Runs `command` until it ends or the block is left. `text`: all that it wrote."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.text = ""
        self._ours, theirs = pty.openpty()
        self.resize(100, 30)
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def resize(self, columns: int, lines: int) -> None:
        """The window has this size now."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Presses keys; what was written before does not count for `until`."""
        self._read(0.0)
        self._seen = len(self.text)
        os.write(self._ours, keys.encode())

    def until(self, text: str) -> None:
        """Returns when the program has written `text` since the latest key."""
        deadline = time.monotonic() + WAIT_SECONDS
        while text not in self.text[self._seen :]:
            assert time.monotonic() < deadline, self.text[-2000:]
            assert self._process.poll() is None, self.text[-2000:]
            self._read(0.2)

    def frames(self) -> list[list[str]]:
        """What was drawn, frame by frame, as lines without colours."""
        frames = []
        for frame in self.text.split("\x1b[H")[1:]:
            if "\x1b[J" in frame:
                frames.append([_CODES.sub("", line).rstrip("\r") for line in frame.split("\n")])
        return frames

    def ended(self) -> int:
        """The exit status."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self._process.poll() is None:
            assert time.monotonic() < deadline
            self._read(0.1)
        self._read(0.1)
        return self._process.returncode

    _seen = 0

    def _read(self, seconds: float) -> None:
        while select.select([self._ours], [], [], seconds)[0]:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the program has ended
                return
            if not data:
                return
            self.text += data.decode(errors="replace")
            seconds = 0.0
