"""Bounds wrong API keys and login links by address, in this process's memory.

They cannot be guessed, but each guess costs a query. A program that repeats one wrong key guesses
nothing, so only different ones count. Keys that were right lately work whatever else comes from
their address.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from api.errors import ApiError

MOST = 100  # different wrong ones of one address in WINDOW
WINDOW = 60.0  # seconds
REMEMBERED = 10_000  # addresses


@dataclass(slots=True)
class _Window:
    began: float
    digests: set[str] = field(default_factory=set)


class Guesses:
    """Counts them. `clock`: time.monotonic()."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()  # the oldest first

    def check(self, address: str, digest: str) -> None:
        """Raises ApiError 429 if too many others came from there."""
        left = self.seconds_left(address, digest)
        if left > 0:
            raise _too_many(math.ceil(left))

    def seconds_left(self, address: str, digest: str) -> float:
        """For how long too many others have come from there; 0 or less: it may be tried."""
        window = self._windows.get(address)
        if window is None or len(window.digests) < MOST or digest in window.digests:
            return 0.0
        return window.began + WINDOW - self._clock()

    def wrong(self, address: str, digest: str) -> None:
        """The key or link with this digest was wrong."""
        now = self._clock()
        window = self._windows.get(address)
        if window is None or now >= window.began + WINDOW:
            self._windows.pop(address, None)
            window = self._windows[address] = _Window(now)
            if len(self._windows) > REMEMBERED:
                self._windows.popitem(last=False)
        if len(window.digests) < MOST:
            window.digests.add(digest)


def _too_many(seconds: int) -> ApiError:
    return ApiError(
        429,
        f"too many wrong keys or login links from your address: try again in {seconds} s",
        code="too_many_guesses",
        params={"seconds": seconds},
        headers={"Retry-After": str(seconds)},
    )
