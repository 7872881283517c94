"""How long a thread has been busy with one piece of work, for those who watch it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Started and stopped by one thread, read from any."""

    def __init__(self) -> None:
        self._began: float | None = None  # monotonic

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a piece of work that may hang."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._began = None

    def seconds(self) -> float:
        """Since the present piece of work began; 0.0 between two."""
        began = self._began  # read once: the other thread may finish meanwhile
        if began is None:
            return 0.0
        return time.monotonic() - began
