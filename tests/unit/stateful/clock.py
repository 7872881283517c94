"""An event loop whose clock jumps: minutes pass in milliseconds, always in the same order."""

import asyncio
import selectors
from typing import Any

TURN_SECONDS = 0.0001  # what one turn of the loop takes on its own clock


class _Jump(selectors.SelectSelector):
    """Never waits: when nothing is ready, it is the time of the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is left that could ever happen")
        self.now += max(timeout, TURN_SECONDS)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Seconds on the loop's own clock."""
        return self._jump.now
