"""What a starting engine is at, from the thread that loads its model to the node's state."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class LoadStatus:
    """`fraction`: of the weights that are loaded, from 0 to 1; None: not known. `text`: for people.

    Written by one thread and read by another, each field by itself.
    """

    fraction: float | None = None
    text: str = ""


# That of the engine which starts in this context; set by `following`, as engines know no node.
_current: ContextVar[LoadStatus | None] = ContextVar("load status", default=None)


@contextmanager
def following(status: LoadStatus) -> Iterator[None]:
    """What is reported in this context, and in threads with a copy of it, goes to `status`."""
    token = _current.set(status)
    try:
        yield
    finally:
        _current.reset(token)
        status.fraction, status.text = None, ""


def report(text: str, fraction: float | None = None) -> None:
    """Says what is being done; nothing if no node follows."""
    status = _current.get()
    if status is not None:
        status.text, status.fraction = text, fraction
