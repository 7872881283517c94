"""Warnings about a node's neighbours: in its state for a while, in the log now and then."""

import time
from collections import OrderedDict

import structlog

SHOWN_SECONDS = 60.0  # since the warning came last
LOG_SECONDS = 60.0  # between two log lines about one source
MAX_SOURCES = 100  # the latest

log = structlog.get_logger()


class Warnings:
    """The latest warning about each source, such as a node. Times are on the monotonic clock."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._latest: OrderedDict[str, tuple[float, str]] = OrderedDict()  # when, and why
        self._logged: OrderedDict[str, float] = OrderedDict()

    def add(self, source: str, reason: str) -> None:
        """Something is wrong with what `source` sends."""
        now = time.monotonic()
        self._latest[source] = now, reason
        self._latest.move_to_end(source)
        if now - self._logged.get(source, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged[source] = now
            log.warning("message ignored", node=self._node, sender=source, reason=reason)
        while len(self._latest) > MAX_SOURCES:
            self._latest.popitem(last=False)
        while len(self._logged) > MAX_SOURCES:
            self._logged.popitem(last=False)

    def text(self) -> str:
        """The present warnings as one sentence; empty if there are none."""
        oldest = time.monotonic() - SHOWN_SECONDS
        shown = []
        for source, (at, reason) in self._latest.items():
            if at >= oldest:
                shown.append(f"{source}: {reason}")
        return "; ".join(shown)
