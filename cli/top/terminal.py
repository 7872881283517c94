"""A terminal for a while: the other screen, keys without Enter, its size at each frame."""

import asyncio
import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator

# the other screen; no cursor; long lines are cut, not wrapped
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_ARROWS = {"[A": "up", "[B": "down", "[5~": "page up", "[6~": "page down", "OA": "up", "OB": "down"}


def size() -> tuple[int, int]:
    """Columns and lines, now."""
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except OSError:  # not a terminal
        columns, lines = shutil.get_terminal_size()
    return max(20, columns), max(5, lines)


@contextlib.contextmanager
def taken(on_key: Callable[[str], None], on_resize: Callable[[], None]) -> Iterator[None]:
    """Takes over the terminal within the block and restores it, however the block ends.

    `on_key` gets a letter, or the name of an arrow key.
    """
    loop = asyncio.get_running_loop()
    keys = sys.stdin.fileno()
    former = termios.tcgetattr(keys) if os.isatty(keys) else None
    try:
        if former is not None:
            tty.setcbreak(keys)
            loop.add_reader(keys, lambda: on_key(_read_key(keys)))
        loop.add_signal_handler(signal.SIGWINCH, on_resize)
        _write(_ENTER)
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        if former is not None:
            loop.remove_reader(keys)
            termios.tcsetattr(keys, termios.TCSADRAIN, former)
        _write(_LEAVE)


def draw(lines: list[str]) -> None:
    """One frame, in one write, so that it does not flicker."""
    body = "\r\n".join(f"{line}\x1b[K" for line in lines)
    _write(f"\x1b[H{body}\x1b[J")


def _read_key(keys: int) -> str:
    """A letter, or the name of an arrow key; "q" when the terminal is gone."""
    data = os.read(keys, 1)
    if not data:
        return "q"
    if data != b"\x1b":
        return data.decode(errors="replace")
    ready, _, _ = select.select([keys], [], [], 0)
    if not ready:
        return "escape"
    return _ARROWS.get(os.read(keys, 8).decode(errors="replace"), "")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
