"""Lines on standard error about work that takes long."""

import sys
import time

EVERY = 2.0  # seconds between two lines


def say(text: str) -> None:
    """A line for who watches; results go to standard output."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """How far a step is: a line now and then, none for what is quick. `unit`: of `total`."""

    def __init__(self, step: str, total: int, unit: str) -> None:
        self._step = step
        self._total = total
        self._unit = unit
        self._done = 0
        self._last = time.monotonic()

    def add(self, amount: int) -> None:
        """So much more is done."""
        self._done += amount
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            say(f"{self._step}: {self._done:,} of {self._total:,} {self._unit}")
