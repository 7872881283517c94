"""Becomes another program, after asking the kernel for a signal when the parent process dies.

    python child.py SIGNAL PARENT_PID PROGRAM ARGUMENTS...

So `kill -9` of the launcher leaves no orphan. It is a program because Python code between fork and
exec is not safe; without site packages it costs about 15 ms. Standard library only.
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
    if os.getppid() != int(parent):  # it died before prctl
        os.kill(os.getpid(), signal.SIGKILL)
    os.execvp(command[0], command)  # noqa: S606 - no shell


if __name__ == "__main__":
    main(sys.argv[1:])
