"""How long a thread has been busy with one piece of work, for those who watch it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Started and stopped by one thread, read from any."""

    def __init__(self) -> None:
        self._since: float | None = None  # monotonic

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a piece of work that may hang."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def seconds(self) -> float:
        """Since the piece of work in progress began; 0.0 between two."""
        since = self._since  # read once: the other thread may be done meanwhile
        return 0.0 if since is None else time.monotonic() - since
