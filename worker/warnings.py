"""What an operator should know of a node's neighbours: shown in its state for a while, logged once in a while."""

import time
from collections import OrderedDict

import structlog

SHOWN_SECONDS = 60.0  # since it was noticed last
LOG_SECONDS = 60.0  # between two log lines about one source
SOURCES = 100  # remembered, the latest

log = structlog.get_logger()


class Warnings:
    """The latest warning about each source (a node's name, say)."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._latest: OrderedDict[str, tuple[float, str]] = (
            OrderedDict()
        )  # when, on the monotonic clock
        self._logged: OrderedDict[str, float] = OrderedDict()

    def add(self, source: str, reason: str) -> None:
        """Something is wrong with what `source` sends."""
        now = time.monotonic()
        self._latest[source] = now, reason
        self._latest.move_to_end(source)
        if now - self._logged.get(source, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged[source] = now
            log.warning("message ignored", node=self._node, sender=source, reason=reason)
        for memory in (self._latest, self._logged):
            while len(memory) > SOURCES:
                memory.popitem(last=False)

    def text(self) -> str:
        """The present warnings as one sentence; empty if there are none."""
        oldest = time.monotonic() - SHOWN_SECONDS
        found = [
            f"{source}: {reason}" for source, (at, reason) in self._latest.items() if at >= oldest
        ]
        return "; ".join(found)
