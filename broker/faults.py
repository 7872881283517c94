"""Points at which a test can make a process die, between two steps that no signal could hit.

CANOPY_FAULT_POINT="forward-confirmed:3" kills the process by SIGKILL when it reaches that point for
the third time. The variable is read here, as it is for tests alone and no setting of a node.
"""

import os
import signal


class FaultPoint:
    """One point and its countdown. Without the variable, `reached` costs one comparison."""

    def __init__(self, name: str, setting: str) -> None:
        point, _, count = setting.partition(":")
        self._left = 0
        if point == name:
            self._left = int(count or 1)

    def reached(self) -> None:
        """Counts down, and kills the process at zero."""
        if self._left:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def fault_point(name: str) -> FaultPoint:
    """The point of that name, armed or not by this process's environment."""
    return FaultPoint(name, os.environ.get("CANOPY_FAULT_POINT", ""))
