"""Colours of a terminal, and which one a node's state has."""

import os
import sys

GREEN, YELLOW, CYAN, MAGENTA, RED = "32", "33", "36", "35", "31"
BOLD, DIM, REVERSE = "1", "2", "7"

_OF_STATES = {
    "idle": GREEN,
    "working": GREEN,
    "busy": YELLOW,
    "holding": YELLOW,
    "waiting": YELLOW,
    "starting": CYAN,
    "draining": MAGENTA,
    "drained": MAGENTA,
    "below_draining": MAGENTA,
}


def are_shown() -> bool:
    """Whether standard output takes colours: a terminal whose user has not set NO_COLOR."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def of_state(state: str) -> str:
    """Red is what an operator should look at."""
    return _OF_STATES.get(state, RED)


def paint(text: str, code: str, coloured: bool = True) -> str:
    """The text in a colour."""
    if not (coloured and code and text):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
