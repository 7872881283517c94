"""Becomes another program, after asking the kernel for a signal at the death of the process that started it.

    python child.py SIGNAL PARENT_PID PROGRAM ARGUMENTS...

That is what makes `kill -9` of the launcher leave no orphan. A program of its own rather than code between fork and
exec, where Python is not safe; it runs without site packages, in about 15 ms. Standard library only.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Arms the signal and becomes the program."""
    number, parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)
    os.execvp(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(sys.argv[1:])
