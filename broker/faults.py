"""Points at which a test may have a process die, between two steps that no signal from outside can hit.

CANOPY_FAULT_POINT="forward-confirmed:3" kills the process by SIGKILL when it reaches that point for the third time.
"""

import os
import signal


class FaultPoint:
    """One point, with the count of how often it was reached. Without the variable, `reached` costs one comparison."""

    def __init__(self, name: str, wanted: str | None) -> None:
        point, _, count = (wanted or "").partition(":")
        self._left = int(count or 1) if point == name else 0

    def reached(self) -> None:
        """Counts, and kills the process at the count that was asked for."""
        if self._left:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def fault_point(name: str) -> FaultPoint:
    """The point of that name, armed or not by this process's environment."""
    return FaultPoint(name, os.environ.get("CANOPY_FAULT_POINT"))
